"""What a model proposes for pictures that people label: how sure it is, in which order, for which tool."""
