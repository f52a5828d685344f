"""How each kind of model takes a picture: one rule a file, all behind `base.Preprocessing`."""
