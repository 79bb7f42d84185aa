"""Settings of ``conf/loss/``."""

from dataclasses import dataclass

from hatllm.config.checks import check_choice, check_extras, check_positive, check_range

LOSSES = ("lml", "msl", "msl_ats", "bear", "igd", "sdpo")
PRIORS = ("titles", "popularity")


@dataclass
class LossConfig:
    """The training loss."""

    name: str  # one of LOSSES
    tau: float  # msl, bear: temperature
    prior: str | None  # msl, bear: one of PRIORS, see decode/prior.py; null = none, as published
    eta: float  # msl_ats: the positive's aimed-at probability
    min_tau: float  # msl_ats: clamp
    max_tau: float
    ema: float  # msl_ats: weight of the old temperature in the moving average
    margin_rank: int | None  # bear: the width of the beam
    margin_xi: float | None  # bear: nats over which a token's weight rises
    margin_weight: float | None  # bear: by how much it rises, from 1
    forced_weight: float | None  # igd: weight of a token that is the only legal one
    beta: float | None  # sdpo: how far a preference counts; null = any other loss
    num_negatives: int | None  # sdpo: titles each target competes with

    def __post_init__(self) -> None:
        check_choice("loss", self.name, LOSSES)
        check_extras("loss", self, "sdpo", ("beta", "num_negatives"), ())
        check_extras("loss", self, "bear", ("margin_rank", "margin_xi", "margin_weight"), ())
        check_extras("loss", self, "igd", ("forced_weight",), ())
        check_range("loss.margin_rank", self.margin_rank, 1)
        check_positive("loss.margin_xi", self.margin_xi)
        check_range("loss.margin_weight", self.margin_weight, 0.0)
        check_range("loss.forced_weight", self.forced_weight, 0.0, 1.0)
        check_range("loss.num_negatives", self.num_negatives, 1)
        check_positive("loss.beta", self.beta)
        if self.prior is not None:
            check_choice("loss.prior", self.prior, PRIORS)
        for field in ("tau", "min_tau"):
            check_positive(f"loss.{field}", getattr(self, field))
        check_range("loss.max_tau", self.max_tau, self.min_tau)
        check_range("loss.ema", self.ema, 0.0, 1.0)
        if not 0 < self.eta < 1:
            raise ValueError(f"loss.eta={self.eta} must be between 0 and 1")
