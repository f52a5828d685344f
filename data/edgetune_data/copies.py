"""A data set of any format as a canonical file, for what reads a file and not records: a worker, a later stage."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from tempfile import mkdtemp

from edgetune_data.pictures import is_temporary, process_folder
from edgetune_data.read import absolute, open_records, pictures_of, plain_file, with_pictures


def canonical_file(path: Path) -> Path:
    """Return a canonical JSONL file with the records of a data set: itself, or one that lives as long as the process.

    For what reads a file and not records, such as a worker in a process of its own.

    Raises:
        InputError: the first thing that is wrong, as "file:line: ..." or "file#id: ...".
    """
    plain = plain_file(path)
    if plain is not None:
        return plain
    target = Path(mkdtemp(dir=process_folder())) / f"{path.stem}.jsonl"
    names: Counter[str] = Counter()
    with target.open("w", encoding="utf-8") as stream:
        for value, source in open_records(path):
            names[source] += 1  # as two tables of one name in two folders have it
            named = source if names[source] == 1 else f"{source} ({names[source]})"
            stream.write(json.dumps({**absolute(value), "source": named}, ensure_ascii=False) + "\n")
    return target


def keep_samples(data: Path, sources: Collection[str], folder: Path) -> Path | None:
    """Write those records of `canonical_file`'s copy that were used, for who wants them when this process is gone.

    Args:
        data: what `canonical_file` returned.
        sources: the names of the records that were used.
        folder: where `samples.jsonl` goes, and `samples/` for pictures that came inside the data.

    Returns:
        The file, or None where `data` is the user's own file, which can be read again.
    """
    if not is_temporary(data):
        return None
    values = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    kept = [value for value in values if value["source"] in sources]
    names = {}
    for name in dict.fromkeys(name for value in kept for name in pictures_of(value)):
        names[name] = name
        if is_temporary(Path(name)):
            (folder / "samples").mkdir(exist_ok=True)
            shutil.copyfile(name, folder / "samples" / Path(name).name)
            names[name] = f"samples/{Path(name).name}"
    target = folder / "samples.jsonl"
    lines = (json.dumps(with_pictures(value, names), ensure_ascii=False) for value in kept)
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return target
