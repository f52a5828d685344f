"""Cut the object sprites and photographs of the tiny model from their published packages.

The results are committed (`assets/`), so nobody needs to run this; it is kept so that anyone can check where every
pixel came from. Inputs, unpacked:

* npm `@lobehub/fluent-emoji-3d` 1.1.0 (MIT): one WebP picture per emoji;
* npm `unicode-emoji-json` 0.9.0 (MIT): names and groups;
* Debian `lomiri-wallpapers-16.04` and `-20.04`: photographs, credited one by one in `assets/LICENSES.md`.

Usage: `python build_assets.py EMOJI_3D_DIR EMOJI_JSON_DIR PHOTO_DIR...`
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ASSETS = Path(__file__).parent / "assets"
CELL = 112  # pixels; a sprite is scaled so that its longer side is CELL and lies in the top left of its cell
COLUMNS = 24
PHOTO = (640, 480)
NOVEL = 40  # objects that the base model never sees: they belong to the adaptation domain
GROUPS = {"Objects", "Travel & Places", "Animals & Nature", "Food & Drink", "Activities"}

# Scenes rather than things, near copies of another object, or pictures nobody would call by that name.
LEAVE_OUT = re.compile(
    r" face$|o’clock|-thirty|moon\b|speaker |oncoming|incoming|sun behind|cloud with|globe showing|mailbox with"
    r"|banknote|with (arrow|slash|flash|key|pen|yen|garden|strings|swirl|rain drops|lightning|wings|decorative cover"
    r"|raised flag)|suit$|place medal|locked|^(monkey|guide dog|service dog|dog|cat|black cat|ox|cow|water buffalo"
    r"|boar|ewe|camel|goat|donkey|leopard|lion|bison|black bird|goose|whale|rabbit|mouse|rat|pig nose"
    r"|front-facing baby chick|baby chick|seal|paw prints|wing|cricket|cockroach|fly|mosquito|microbe|honeybee|ant"
    r"|bug|wilted flower|blossom|white flower|rosette|leaf fluttering in wind|fallen leaf|herb|shamrock"
    r"|four leaf clover|sheaf of rice|sauropod|dodo|dove|eagle|oyster|houses|house|derelict house|hotel|love hotel"
    r"|department store|school|bank|hospital|post office|Japanese post office|convenience store|office building"
    r"|factory|building construction|hut|stadium|classical building|national park|world map|map of Japan|mountain"
    r"|snow-capped mountain|mount fuji|volcano|camping|beach with umbrella|desert|desert island|foggy"
    r"|night with stars|cityscape|cityscape at dusk|sunrise|sunrise over mountains|sunset|bridge at night"
    r"|hot springs|wedding|church|mosque|hindu temple|synagogue|kaaba|Japanese castle|fountain|bus stop|motorway"
    r"|railway track|railway car|train|metro|station|high-speed train|bullet train|light rail|tram|tram car"
    r"|mountain railway|suspension railway|aerial tramway|mountain cableway|monorail|trolleybus|minibus|automobile"
    r"|sport utility vehicle|construction|ferry|motor boat|ship|passenger ship|small airplane|airplane departure"
    r"|airplane arrival|hourglass not done|mantelpiece clock|timer clock|stopwatch|star|glowing star|shooting star"
    r"|milky way|fog|wind face|cyclone|tornado|water wave|comet|droplet|snowman|umbrella|umbrella with rain drops"
    r"|full moon|sun|sun with face|fireworks|sparkler|sparkles|confetti ball|moon viewing ceremony|tanabata tree"
    r"|pine decoration|Japanese dolls|admission tickets|softball|baseball|volleyball|rugby football|cricket game"
    r"|field hockey|ice hockey|lacrosse|badminton|flower playing cards|joker|performing arts|martial arts uniform"
    r"|running shirt|woman’s clothes|one-piece swimsuit|bikini|briefs|sari|kimono|coat|lab coat|goggles|clutch bag"
    r"|purse|thong sandal|flat shoe|woman’s sandal|woman’s boot|man’s shoe|hair pick|woman’s hat|military helmet"
    r"|musical notes|musical score|level slider|control knobs|pager|low battery|trackball|computer disk|dvd"
    r"|film frames|film projector|video camera|magnifying glass tilted right|notebook|ledger|green book|blue book"
    r"|orange book|open book|page with curl|page facing up|newspaper|bookmark|bookmark tabs|e-mail|outbox tray"
    r"|inbox tray|postbox|ballot box with ballot|black nib|pen|fountain pen|memo|open file folder|card index"
    r"|card index dividers|tear-off calendar|spiral calendar|spiral notepad|chart increasing|chart decreasing"
    r"|pushpin|linked paperclips|old key|hammer and pick|hammer and wrench|chains|link|petri dish|alembic|elevator"
    r"|mirror|window|bubbles|coffin|headstone|funeral urn|hamsa|identification card|placard|muted speaker"
    r"|loudspeaker|cigarette|crossed swords|drop of blood|x-ray|cooking|clinking beer mugs|clinking glasses"
    r"|tumbler glass|pouring liquid|stuffed flatbread|flatbread|tamale|oden|curry rice|cooked rice|rice cracker"
    r"|fish cake with swirl|moon cake|shaved ice|soft ice cream|sake|glass of milk|fork and knife"
    r"|fork and knife with plate|chopsticks|tangerine|cherry blossom|hyacinth|seedling|deciduous tree|empty nest"
    r"|melon|beans|leafy green|ginger root|pot of food|bowl with spoon|poultry leg|cut of meat|amphora|ice|mate)$"
)
SHORTER = {
    "red apple": "apple", "hatching chick": "chick", "lady beetle": "ladybug", "spouting whale": "whale",
    "nest with eggs": "nest", "ear of corn": "corn", "hot beverage": "hot drink",
    "bottle with popping cork": "bottle", "cup with straw": "soda cup", "cheese wedge": "cheese",
    "red paper lantern": "paper lantern", "rescue worker’s helmet": "rescue helmet",
    "magnifying glass tilted left": "magnifying glass", "couch and lamp": "couch", "hourglass done": "hourglass",
    "T-Rex": "dinosaur", "shallow pan of food": "pan", "steaming bowl": "noodle bowl", "roll of paper": "paper roll",
    "umbrella with rain drops": "umbrella", "umbrella on ground": "beach umbrella", "globe with meridians": "globe",
    "Christmas tree": "christmas tree", "snowman without snow": "snowman", "Statue of Liberty": "statue",
    "Tokyo tower": "red tower", "pool 8 ball": "pool ball", "mahjong red dragon": "mahjong tile",
    "meat on bone": "meat", "cocktail glass": "cocktail", "closed book": "book", "tear-off calendar": "calendar",
    "reminder ribbon": "awareness ribbon", "military medal": "medal", "horse face": "horse",
}  # fmt: skip


def names_and_files(pictures: Path, names: Path) -> list[tuple[str, Path]]:
    """Pair every kept object name with its picture, in Unicode order."""
    assets = {path.stem: path for path in (pictures / "assets").glob("*.webp")}
    kept = []
    for emoji, facts in json.loads((names / "data-by-emoji.json").read_text()).items():
        if facts["group"] not in GROUPS or LEAVE_OUT.search(facts["name"]):
            continue
        code = "-".join(f"{ord(char):04x}" for char in emoji)
        picture = assets.get(code) or assets.get(code.replace("-fe0f", ""))
        if picture is not None:
            kept.append((SHORTER.get(facts["name"], facts["name"]).replace("’", "'"), picture))
    return kept


def sprite(path: Path) -> Image.Image:
    """Trim transparent borders and scale the longer side to CELL. Returns RGBA."""
    image = Image.open(path).convert("RGBA")
    alpha = np.asarray(image)[..., 3] > 40
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    image = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    scale = CELL / max(image.size)
    size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def main() -> None:
    """Write assets/objects.webp, assets/objects.json and assets/photos/*.jpg."""
    pictures, names, *photos = (Path(argument) for argument in sys.argv[1:])
    kept = names_and_files(pictures, names)
    novel = set(random.Random(16).sample([name for name, _ in kept], NOVEL))
    atlas = Image.new("RGBA", (COLUMNS * CELL, -(-len(kept) // COLUMNS) * CELL))
    objects = []
    for index, (name, path) in enumerate(kept):
        cut = sprite(path)
        atlas.paste(cut, (index % COLUMNS * CELL, index // COLUMNS * CELL))
        objects.append({"name": name, "width": cut.width, "height": cut.height, "novel": name in novel})
    atlas.save(ASSETS / "objects.webp", quality=88, alpha_quality=90, method=6)
    (ASSETS / "objects.json").write_text(
        "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in objects) + "\n]\n"
    )
    (ASSETS / "photos").mkdir(exist_ok=True)
    for path in sorted(p for folder in photos for p in folder.glob("*.jpg")):
        photo = ImageOps.fit(Image.open(path).convert("RGB"), PHOTO, Image.Resampling.LANCZOS)
        photo.save(ASSETS / "photos" / path.name, quality=86)
    print(f"{len(objects)} objects, {len(novel)} of them novel")


if __name__ == "__main__":
    main()
