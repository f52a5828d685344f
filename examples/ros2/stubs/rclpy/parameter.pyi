from typing import Any

class Parameter:
    name: str
    value: Any
