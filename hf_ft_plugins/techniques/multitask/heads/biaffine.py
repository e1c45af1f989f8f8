"""The scores of a deep biaffine parser (Dozat and Manning 2017, arXiv:1611.01734, section 3).

Four networks of one layer each make, of a word's vector, a vector of it as a dependent and one as a head, for arcs and
for relations. Biaffine products of these are the scores.

Deviations: the root is a learned vector, not the encoder's first token; relations of width 128 and arcs of width 256
rather than 100 and 500; LeakyReLU of slope 0.1, as in the authors' code (tdozat/Parser-v1), and its initial weights:
orthogonal networks, biaffine weights 0. B rows, W words, H features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, leaky_relu
from transformers import initialization

from ....errors import PluginError
from ..tasks import NAME

SLOPE = 0.1


class BiaffineScorer(nn.Module):
    """Scores of heads for words, and of relations between a word and a given head.

    Args:
        hidden_size: H, of the words' vectors.
        relations: R, how many there are.
        arc_dim, label_dim: widths of the vectors of which arcs and relations are scored.
        dropout: probability that an element of these vectors is dropped, in all words of a row alike.

    Raises:
        PluginError: a width below 1, or a probability that is none below 1.
    """

    def __init__(
        self, hidden_size: int, relations: int, arc_dim: int = 256, label_dim: int = 128, dropout: float = 0.33
    ) -> None:
        super().__init__()
        if arc_dim < 1 or label_dim < 1 or not 0 <= dropout < 1:
            raise PluginError(
                f"{NAME}: arc_dim={arc_dim}, label_dim={label_dim}, dropout={dropout}: the widths must be 1 or more, "
                "dropout 0 or more and below 1.",
                code="option-value",
            )
        self.dropout = dropout
        self.root = nn.Parameter(torch.empty(hidden_size))
        self.arc_dependent = nn.Linear(hidden_size, arc_dim)
        self.arc_head = nn.Linear(hidden_size, arc_dim)
        self.label_dependent = nn.Linear(hidden_size, label_dim)
        self.label_head = nn.Linear(hidden_size, label_dim)
        self.arc_weight = nn.Parameter(torch.empty(arc_dim + 1, arc_dim))
        self.label_weight = nn.Parameter(torch.empty(relations, label_dim + 1, label_dim + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights, from the global random state."""
        # As large as the elements of a layer-normalized vector.
        initialization.normal_(self.root, std=1.0)
        for network in (self.arc_dependent, self.arc_head, self.label_dependent, self.label_head):
            initialization.orthogonal_(network.weight)
            initialization.zeros_(network.bias)
        initialization.zeros_(self.arc_weight)
        initialization.zeros_(self.label_weight)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Scores of all arcs, and the vectors that `label_scores` needs.

        Args:
            features: float [B, W, H].

        Returns:
            `arcs` float32 [B, W, W + 1], column 0 the root and column h word h as the head; `label_dependent` [B, W,
            label_dim] and `label_head` [B, W + 1, label_dim].
        """
        words = features.to(self.root.dtype)
        candidates = torch.cat([self.root.to(words.dtype).expand(len(words), 1, -1), words], dim=1)
        arc_dependent, arc_head = self._vectors(self.arc_dependent, words), self._vectors(self.arc_head, candidates)
        # In float32 also under autocast: between heads that bfloat16 cannot tell apart, the first would win.
        with torch.autocast(features.device.type, enabled=False):
            arcs = _with_one(arc_dependent.float()) @ self.arc_weight.float() @ arc_head.float().mT
        return {
            "arcs": arcs,
            "label_dependent": self._vectors(self.label_dependent, words),
            "label_head": self._vectors(self.label_head, candidates),
        }

    def label_scores(self, scores: dict[str, Tensor], heads: Tensor) -> Tensor:
        """Scores of the relations between each word and one head.

        Args:
            scores: of `forward`.
            heads: int64 [B, W], 0 to W.

        Returns:
            float32 [B, W, R]. On the way there are tensors [B, W, R, label_dim + 1], and none of all pairs of words.
        """
        chosen = heads[..., None].expand(-1, -1, scores["label_head"].shape[-1])
        with torch.autocast(heads.device.type, enabled=False):
            head = _with_one(scores["label_head"].gather(1, chosen).float())
            dependent = _with_one(scores["label_dependent"].float())
            weighted = torch.tensordot(dependent, self.label_weight.float(), dims=([-1], [1]))
            return (weighted * head[..., None, :]).sum(-1)

    def _vectors(self, network: nn.Linear, words: Tensor) -> Tensor:
        vectors = leaky_relu(network(words), SLOPE)
        # One mask for all words of a row (section 3.2: the same at every time step).
        return vectors * dropout(vectors.new_ones(len(vectors), 1, vectors.shape[-1]), self.dropout, self.training)


def _with_one(vectors: Tensor) -> Tensor:
    """With a last element 1 for a bias."""
    return torch.cat([vectors, torch.ones_like(vectors[..., :1])], dim=-1)
