"""One module a verb: parse the arguments, call the stage, print its result."""
