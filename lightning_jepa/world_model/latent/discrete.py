"""A latent variable of K codes, whose minimum is found by trying all of them.

Legend: N transitions, K codes, D state, A action.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_jepa.layers import mlp
from lightning_jepa.world_model.latent.inference import Inferred, Predict, check_memory, distance


class DiscreteLatent(nn.Module):
    """One of K codes; R(z) = -strength log p(z | s, a), the prior being learned from the codes that were found.

        F(x, y) = min_k |s_y - Pred(s_x, a, k)|^2 / D - strength log p(k | s, a)

    All information that z can give away is log K, which is what limits the volume of low energy (paper section 4.4,
    criterion 4). In training codes are chosen by the distance alone, and a share `relaxation` of it is that of the mean
    over all codes: else a code that is rare gets rarer, and one that never was the best never will be (relaxed
    winner-takes-all).

    Args:
        codes: K.
        state_size: D, numbers of what is known: a state, or as many as the predictor looks back on.
        action_size: A.
        strength: of the prior in the energy, in the unit of D.
        relaxation: see above.
        hidden: width of the prior's network.
        memory_gb: what the codes and the predictions with all of them may take at once.

    Raises:
        ValueError: if there is no choice of codes, they would not fit into memory, or a number is out of its range;
            where z is inferred, if the predictions with all codes would not fit.
    """

    noise = 1

    def __init__(
        self,
        codes: int,
        state_size: int,
        action_size: int,
        strength: float = 0.0,
        relaxation: float = 0.05,
        hidden: int = 128,
        memory_gb: float = 8.0,
    ) -> None:
        super().__init__()
        if codes < 2 or strength < 0 or not 0 <= relaxation < 1:
            raise ValueError(
                f"codes={codes}, strength={strength}, relaxation={relaxation}: give at least 2 codes, a strength of at "
                f"least 0 and a relaxation of at least 0 and below 1"
            )
        own = codes * (codes + hidden)  # one-hot, and in the prior's last layer
        check_memory(f"knowing {codes} codes", own, torch.empty(0), memory_gb, "lower latent.codes")
        self.size = self.codes = codes
        self.state_size, self.action_size = state_size, action_size
        self.strength, self.relaxation, self.memory_gb = strength, relaxation, memory_gb
        self.prior = mlp(state_size + action_size, hidden, codes, 1)

    def infer(self, predict: Predict, s: Tensor, a: Tensor, s_y: Tensor) -> Inferred:
        """By trying all codes: exact."""
        count, numbers = len(s), self.codes * (s_y.numel() + len(s) * (a.shape[-1] + self.codes))
        what, mend = (
            f"trying {self.codes} codes for {count} transitions at once",
            "lower latent.codes or data.batch_size",
        )
        check_memory(what, numbers, s_y, self.memory_gb, mend)
        codes = torch.eye(self.codes, device=s.device, dtype=s.dtype)
        predicted = predict(codes.expand(count, -1, -1))  # [N, K, D]
        error = distance(s_y[:, None], predicted)  # [N, K]
        log_prior = self.logits(s, a).log_softmax(-1)
        regulariser = -self.strength * log_prior.detach()
        asked = error.detach() if self.training else error.detach() + regulariser
        best = asked.argmin(1, keepdim=True)
        found = error.gather(1, best)[:, 0]
        relaxed = (1 - self.relaxation) * found + self.relaxation * error.mean(1)
        index = best[..., None].expand(-1, -1, predicted.shape[-1])
        return Inferred(
            codes[best[:, 0]],
            predicted.gather(1, index)[:, 0],
            found,
            regulariser.gather(1, best)[:, 0],
            relaxed,
            {"prior": -log_prior.gather(1, best)[:, 0]},
        )

    def logits(self, s: Tensor, a: Tensor) -> Tensor:
        """Of p(z | s, a), [..., D], [..., A] -> [..., K]."""
        found: Tensor = self.prior(torch.cat([s, a], -1))
        return found

    def draw(self, s: Tensor, a: Tensor, uniform: Tensor) -> Tensor:
        """The code at each quantile: [N, D], [N, A], [N, 1] -> [N, K]."""
        below = self.logits(s, a).float().softmax(-1).cumsum(-1)[..., :-1]
        code = (uniform >= below).sum(-1)
        return F.one_hot(code, self.codes).to(s)

    def outcomes(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """All codes [N, K, K], and their probabilities [N, K]."""
        codes = torch.eye(self.codes, device=s.device, dtype=s.dtype).expand(len(s), -1, -1)
        return codes, self.logits(s, a).float().softmax(-1)

    def likeliest(self, s: Tensor, a: Tensor) -> Tensor:
        """The code of the largest probability, [N, D], [N, A] -> [N, K]."""
        return F.one_hot(self.logits(s, a).argmax(-1), self.codes).to(s)
