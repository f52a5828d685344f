"""Ask a server with X-AnyLabeling's own client, without a screen: runs in the environment of X-AnyLabeling.

    QT_QPA_PLATFORM=offscreen python ask_x_anylabeling.py URL KEY < pictures.json

Standard input is a list of [picture, words]; standard output is a list with the shapes of each and the messages.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import anylabeling.config  # type: ignore[import-not-found]
from anylabeling.services.auto_labeling.remote_server import RemoteServer  # type: ignore[import-not-found]
from PyQt6.QtGui import QGuiApplication, QImage  # type: ignore[import-not-found]


def main(url: str, key: str) -> None:
    """Ask about each picture as its page does: list the models, take the first, send the words."""
    application = QGuiApplication([])
    messages: list[str] = []
    # What its dialogue "Remote Server Settings" writes into the user's configuration.
    written = {"remote_server_settings": {"server_url": url, "api_key": key}}
    anylabeling.config.current_config_file = json.dumps(written)
    settings = {"type": "remote_server", "name": "remote", "display_name": "Remote", "timeout": 60}
    client: Any = RemoteServer(settings, messages.append)
    models = client.get_available_models()
    told: list[Any] = []
    if models:
        client.set_model_id(next(iter(models)))
        for path, words in json.load(sys.stdin):
            result = client.predict_shapes(QImage(path), path, text_prompt=words)
            shapes = [
                [shape.label, shape.shape_type, [[point.x(), point.y()] for point in shape.points], shape.score]
                for shape in result.shapes
            ]
            told.append(shapes)
    json.dump(
        {"models": models, "told": told, "mode": client.get_batch_processing_mode(), "messages": messages}, sys.stdout
    )
    application.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
