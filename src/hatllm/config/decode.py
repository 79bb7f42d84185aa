"""Settings of ``conf/decode/``."""

from dataclasses import dataclass

from hatllm.config.checks import check_choice, check_extras, check_positive, check_range

SEARCHES = ("beam", "generate", "exact", "d3", "grounding")
NORMALIZATIONS = ("trie", "vocab")


@dataclass
class DecodeConfig:
    """How titles are searched and how many users go through at once."""

    name: str  # one of SEARCHES
    beam_width: int
    length_penalty: float  # finished score = log_prob / length ** length_penalty
    normalize: str  # one of NORMALIZATIONS
    temperature: float | None  # of scores; null = what was trained, see Config.temperatures
    top_k: int  # titles kept for each user
    exclude_history: bool  # titles of the history, as long as the row gives it, are no answers
    users_per_batch: int
    max_expansions: int  # exact: model calls a user before it gives up its certificate
    state_cache: bool | None  # keep shallow states of the catalogue; null = where it pays
    assistant_run: str | None  # d3: finished run of a baseline
    llm_weight: float | None  # d3: of the LLM's log-probabilities; the rest is the assistant's
    max_title_tokens: int | None  # grounding: longest text written; null = the longest title's
    information_gain: float | None  # beam: how much less tokens count that decide least; null = 0

    @property
    def is_mixed(self) -> bool:
        """Whether titles rank by something else than the model's own log-probability."""
        return self.name == "d3" or self.information_gain is not None

    @property
    def is_beam(self) -> bool:
        """Whether a beam goes along the trie."""
        return self.name in ("beam", "generate", "d3")

    @property
    def stops_early(self) -> bool:
        """Whether the beam ends where that of transformers does with ``early_stopping=False``."""
        return self.name in ("generate", "grounding")

    def __post_init__(self) -> None:
        check_choice("decode", self.name, SEARCHES)
        check_extras("decode", self, "d3", ("assistant_run", "llm_weight"), ())
        check_extras("decode", self, "grounding", (), ("max_title_tokens",))
        check_extras("decode", self, "beam", (), ("information_gain",))
        check_range("decode.information_gain", self.information_gain, 0.0, 1.0)
        check_range("decode.llm_weight", self.llm_weight, 0.0, 1.0)
        check_range("decode.max_title_tokens", self.max_title_tokens, 1)
        check_choice("decode.normalize", self.normalize, NORMALIZATIONS)
        if self.temperature is not None:
            check_positive("decode.temperature", self.temperature)
        check_range("decode.beam_width", self.beam_width, 1)
        check_range("decode.top_k", self.top_k, 1)
        check_range("decode.users_per_batch", self.users_per_batch, 1)
        check_range("decode.max_expansions", self.max_expansions, 1)
        check_range("decode.length_penalty", self.length_penalty, 0.0)
        if self.is_beam and self.top_k > self.beam_width:
            raise ValueError(
                f"decode.top_k={self.top_k} must be at most decode.beam_width={self.beam_width}"
            )
        if self.name == "exact" and self.length_penalty != 0:
            raise ValueError(
                f"decode.length_penalty={self.length_penalty} must be 0 with decode=exact: only "
                "then do scores fall along the trie"
            )
        if self.name == "d3" and self.length_penalty != 0:
            raise ValueError(
                f"decode.length_penalty={self.length_penalty} must be 0 with decode=d3, which does "
                "without length normalisation"
            )
        writes_for_free = self.normalize == "vocab" and self.state_cache is False
        if self.name == "grounding" and not writes_for_free:
            raise ValueError(
                f"decode.normalize={self.normalize!r}, decode.state_cache={self.state_cache} must "
                "be vocab and false with decode=grounding, which writes free text"
            )
