"""From the predictions of a video's windows to its actions: soft-NMS and voting, in PyTorch."""

from collections.abc import Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor


def merge_windows(
    windows: Sequence[InstanceData],
    sigma: float = 0.5,
    min_score: float = 0.001,
    max_per_video: int = 2000,
    by_class: bool = True,
    voting: float | None = None,
) -> InstanceData:
    """Suppress what several predictions say, and keep the best.

    Args:
        windows: Predictions of the windows of one video: ``segments`` (N, 2) in seconds,
            ``scores`` (N), ``labels`` (N).
        sigma: See ``soft_nms``.
        min_score: See ``soft_nms``.
        max_per_video: Actions at most.
        by_class: Actions of different classes do not suppress each other.
        voting: Overlap from which predictions vote for the ends of an action (``vote``), if
            classes are not told apart; None leaves the ends.

    Raises:
        ValueError: There is ``voting``, and ``by_class``.
    """
    if voting is not None and by_class:
        raise ValueError("voting is for actions of all classes together: set by_class=False")
    segments, scores, labels = (
        torch.cat([window[key].detach().cpu() for window in windows])
        for key in ("segments", "scores", "labels")
    )
    segments, scores = segments.float(), scores.float()
    kept, decayed = soft_nms(
        segments, scores, labels if by_class else None, sigma, min_score, max_per_video
    )
    found = segments[kept]
    if voting is not None:
        found = vote(found, segments, scores, voting)
    return InstanceData(segments=found, scores=decayed, labels=labels[kept])


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    sigma: float = 0.5,
    min_score: float = 0.001,
    max_kept: int = 2000,
) -> tuple[Tensor, Tensor]:
    """Take the best segment, lower the scores of those that overlap it, and again.

    Gaussian soft-NMS (Bodla et al., https://arxiv.org/abs/1704.04503): a score is multiplied by
    exp(−IoU² / sigma) for every better segment of its group that is taken.

    Args:
        segments: Float (N, 2).
        scores: Float (N).
        groups: Int (N), which suppress each other only within; None is one group.
        sigma: Above 0; the smaller, the more is suppressed.
        min_score: A segment whose score falls below is dropped.
        max_kept: Segments at most, of each group and of all.

    Returns:
        Indices of what is kept, best first, and the lowered scores.
    """
    if sigma <= 0:
        raise ValueError(f"sigma has to be above 0, got {sigma}")
    if len(scores) == 0:
        return torch.zeros(0, dtype=torch.long), scores
    # Groups are the rows of a matrix, so that they go through the loop together.
    if groups is None:
        groups = torch.zeros(len(scores), dtype=torch.long)
    _, row = groups.unique(return_inverse=True)
    order = row.argsort(stable=True)
    sizes = row.bincount()
    column = torch.cat([torch.arange(size) for size in sizes])
    index = torch.full((len(sizes), int(sizes.max())), -1)
    index[row[order], column] = order
    left = torch.where(index >= 0, scores[index], -1.0)
    ends = segments[index]
    kept, decayed = [], []
    for _ in range(min(max_kept, index.shape[1])):
        best, place = left.max(dim=1, keepdim=True)
        alive = (best >= min_score) & (best >= 0)
        if not alive.any():
            break
        kept.append(index.gather(1, place)[alive])
        decayed.append(best[alive])
        taken = ends.gather(1, place[..., None].expand(-1, -1, 2))
        left = left * torch.exp(-(_overlap(ends, taken) ** 2) / sigma)
        left.scatter_(1, place, -1.0)
    if not kept:
        return torch.zeros(0, dtype=torch.long), scores[:0]
    found, score = torch.cat(kept), torch.cat(decayed)
    score, order = score.sort(descending=True, stable=True)
    return found[order[:max_kept]], score[:max_kept]


def vote(found: Tensor, segments: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Replace the ends of each segment by the mean over all that overlap it, by score.

    Args:
        found: (M, 2).
        segments: (N, 2), which vote.
        scores: (N), the weights.
        threshold: Overlap (IoU) from which one votes.
    """
    weights = (_overlap(segments[None], found[:, None]) >= threshold) * scores
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weights @ segments / total.clamp(min=1e-12), found)


def _overlap(segments: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of segments (..., 2) that broadcast; 0 where both have no length."""
    shared = torch.minimum(segments[..., 1], others[..., 1]) - torch.maximum(
        segments[..., 0], others[..., 0]
    )
    shared = shared.clamp(min=0)
    lengths = segments[..., 1] - segments[..., 0] + others[..., 1] - others[..., 0]
    return shared / (lengths - shared).clamp(min=1e-6)
