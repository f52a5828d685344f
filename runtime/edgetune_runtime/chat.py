"""The pieces that a prompt is put together from: a family has them, and a bundle carries them along."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chat:
    """The pieces of a prompt, rendered ahead so that no template engine is needed.

    A question about one image is `prefix + before_image + image_token * n + after_image + text + suffix`, and the
    model answers with `before_answer`, text and `end`. A conversation goes on with `between + user + text + suffix`.
    Where a rule of `edgetune_runtime.images` marks tiles, the marks stand among the image tokens.

    Attributes:
        prefix: what comes before the first user's words: a default system prompt, where the family's template puts
            one, and `user`.
        before_image: what opens an image.
        image_token: the placeholder that is repeated once for each image token.
        after_image: what closes an image.
        suffix: the end of a user turn and the opening of the answer.
        end: the token that ends an answer.
        user: the opening of a user turn.
        between: what follows `end` before the next turn.
        system: a system turn, with `{text}`, which takes the default one's place; "" where the family has none.
        begin: the token that every sequence begins with, which the tokenizer adds and the template does not write; ""
            where there is none.
        before_text: what opens a user turn that starts with words and not with an image.
        before_answer: what the model writes before an answer's own words.
        opening: what the template writes behind `suffix` before the last answer of a conversation, and before no other.
    """

    prefix: str
    before_image: str
    image_token: str
    after_image: str
    suffix: str
    end: str
    user: str = ""
    between: str = ""
    system: str = ""
    begin: str = ""
    before_text: str = ""
    before_answer: str = ""
    opening: str = ""

    @property
    def last_suffix(self) -> str:
        """The end of the last user turn, up to where its answer starts."""
        return self.suffix + self.opening

    def render(self, text: str, image_tokens: int) -> str:
        """Return the whole prompt up to where the answer starts, as a chat template would (without `begin`).

        Args:
            text: the user's words.
            image_tokens: how many image placeholder tokens the image takes; 0 leaves the image part out.
        """
        image = self.before_image + self.image_token * image_tokens + self.after_image
        return self.prefix + (image if image_tokens else self.before_text) + text + self.last_suffix
