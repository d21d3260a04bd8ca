"""Importance of feed-forward blocks by how much they turn their inputs (QuantMoE-Bench).

arXiv 2406.08155: a small net learns to predict, from a token, the cosine between the input and the
output of a feed-forward block. Where the prediction is low the block changes much, and needs bits.
The score here is the mean prediction for tokens that the net was not trained on, a tenth of them
(in the authors' code it is tested on the text that it is trained on).
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores, from_importance
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.model.running import first_input, hooked
from brevitas_axe.registry import Facts, check_expressions, check_ranges

# As in the authors' code.
WIDTH, RATE, DECAY, HELD_OUT, PATIENCE = 1024, 1e-4, 1e-2, 0.1, 5
_BATCH = 64


@dataclass(frozen=True)
class BlockPredictor:
    """Importance = 1 - predicted cosine for layers of feed-forward blocks, 1 for all others.

    Attributes:
        blocks: regular expression that a feed-forward block's whole last name matches.
        residual: whether the output is taken with the input added, as the authors train by default;
            their evaluation does not.
        epochs: most passes over the tokens; training stops five passes after its best one.

    Raises:
        InvalidOption: `blocks` is no regular expression.
    """

    blocks: str = "mlp|ffn|feed_forward|block_sparse_moe|moe"
    residual: bool = False
    epochs: int = 50
    needs_inputs = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="block",
        signal="predicted cosine of a block's input and output",
        export="finn",
        source="arXiv 2406.08155",
    )

    def __post_init__(self) -> None:
        check_ranges(self, epochs=(1, inf))
        check_expressions(self, "blocks")

    def __call__(self, case: Case, trials: Trials) -> Scores:
        [found] = trials.map(_importance, [("cosines", (self, case))])
        assert isinstance(found, list)
        return from_importance(case.choices, dict(zip(case.names, found, strict=True)))


def _importance(scorer: BlockPredictor, case: Case) -> list[float]:
    twin, layers = case.sharing_copy(frozen=True)
    named = {n: m for n, m in twin.named_modules() if re.fullmatch(scorer.blocks, _last(n))}
    wanted = {
        name: block
        for name, block in named.items()
        if any(layer.startswith(f"{name}.") for layer in layers)
    }
    tokens: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in wanted}

    def note(name: str, block: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        x = first_input(args, kwargs)
        y = output[0] if isinstance(output, tuple) else output
        if isinstance(y, Tensor) and y.shape == x.shape:
            y = y + x if scorer.residual else y
            cosine = F.cosine_similarity(x, y, dim=-1).flatten()
            tokens[name].append((x.reshape(-1, x.shape[-1]), cosine))

    with hooked(wanted, after=note), torch.no_grad():
        for args, kwargs in case.batches:
            twin(*args, **kwargs)
    cosines = {
        name: predicted(
            torch.cat([x for x, _ in pairs]),
            torch.cat([cosine for _, cosine in pairs]),
            scorer.epochs,
            case.seed,
        )
        for name, pairs in tokens.items()
        if pairs
    }
    return [
        1 - max((c for n, c in cosines.items() if name.startswith(f"{n}.")), default=0.0)
        for name in case.names
    ]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def predicted(tokens: Tensor, cosines: Tensor, epochs: int, seed: int) -> float:
    """Mean predicted cosine of tokens that the predictor is not trained on.

    Args:
        tokens: [n, width] inputs of a block.
        cosines: [n], between them and the block's outputs.
        epochs: most passes over the tokens.
        seed: of the split, of the start and of the order.
    """
    tokens, cosines = tokens.detach().float(), cosines.detach().float()
    if len(tokens) < 2:
        return float(cosines.mean())
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        order = torch.randperm(len(tokens))
        held = max(int(HELD_OUT * len(tokens)), 1)
        net = nn.Sequential(
            nn.Linear(tokens.shape[1], WIDTH, bias=False),
            nn.ReLU(),
            nn.Linear(WIDTH, 1, bias=False),
            nn.Tanh(),
        )
        optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
        best, kept, waited = inf, net, 0
        for _ in range(epochs):
            for some in order[held:][torch.randperm(len(tokens) - held)].split(_BATCH):
                loss = F.mse_loss(net(tokens[some])[:, 0], cosines[some])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                missed = float(F.mse_loss(net(tokens[order[:held]])[:, 0], cosines[order[:held]]))
            if missed < best:
                best, kept, waited = missed, copy.deepcopy(net), 0
            else:
                waited += 1
                if waited >= PATIENCE:
                    break
    with torch.no_grad():
        return float(kept(tokens[order[:held]]).mean())


block_predictor = BlockPredictor()
