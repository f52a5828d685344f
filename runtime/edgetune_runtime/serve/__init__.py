"""Bundles behind an address: boxes and words over HTTP, in our own terms and in those of other tools (extra [serve]).

    command ──► app ──► detect, chat, label_studio, x_anylabeling ──► model ──► Session
                 │        (what a request means)                      (one thread and one bounded queue a bundle)
                 └► guard (key, limits, log), schema and openapi, metrics, pictures and fetch, page

Nothing here knows how a model is run, and nothing else in the runtime knows that it is served.
"""
