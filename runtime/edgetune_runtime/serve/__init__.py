"""Bundles behind an address: boxes and words over HTTP, in our own terms and in those of OpenAI's API (extra [serve]).

    command ──► app ──► detect, chat ──► model ──► Session
                 │        (what a request means)   (one thread and one bounded queue a bundle)
                 └► guard (key, limits, log), schema (OpenAPI), metrics, page

Nothing here knows how a model is run, and nothing else in the runtime knows that it is served.
"""
