"""From a segmentation network's channels to regions.

Under softmax a pixel belongs to the region of the highest probability. Under sigmoid (Novikov et al., eq. 6 and 9) it
belongs to every region whose probability is above a threshold, or to none. What runs at night takes the highest
probability of each pixel, whatever the network is, so a sigmoid network's answer is brought into that form
(:func:`competing`) where it is exported.
"""

from __future__ import annotations

import torch


def competing(regions: torch.Tensor, threshold: float) -> torch.Tensor:
    """Probabilities of which the highest names the region that a pixel shows.

    The background gets 2 ``threshold`` - (the highest probability of any region), 0 to 1: where that one is above the
    threshold it is above the background's too, and else it is not. Where regions overlap, the one named later in the
    recipe lies on top, as clavicles do on lungs: there an earlier region's probability is lowered to the middle between
    the threshold and that of the region on top, if it is not lower anyway. So every region's probability is above the
    threshold where it was before, and nowhere else: overlapping regions can still be told from the answer.

    Averages of several networks are taken of these numbers. Where two networks agree which region is likeliest and
    nothing overlaps, that region wins the mean exactly where the mean of their own probabilities is above the threshold
    (Novikov et al., Table III, "averaging"). Of more networks, those that are sure can outvote one, as the background's
    probability ends at 1: at 0.75, two that say 1 win over a third that says anything above 0, as by the paper's
    "majority voting". Where networks name different regions, the one with the higher mean may win a little below the
    threshold. Under a region on top the lowered numbers are averaged, so that the mean there is at most that of the
    networks' own probabilities.

    Parameters
    ----------
    regions
        (N, R - 1, H, W), 0 to 1: all regions but the background, in the recipe's order.
    threshold
        0 to 1.

    Returns
    -------
    (N, R, H, W), 0 to 1, background first; they do not add up to 1.
    """
    background = (2 * threshold - regions.amax(1, keepdim=True)).clamp(0, 1)
    last = regions.shape[1] - 1
    ordered = [regions[:, last:]]
    highest = torch.ones_like(ordered[0])
    for index in range(last, 0, -1):
        above = regions[:, index : index + 1]
        highest = torch.minimum(highest, torch.where(above > threshold, (threshold + above) / 2, 1.0))
        ordered.insert(0, torch.minimum(regions[:, index - 1 : index], highest))
    return torch.cat([background, *ordered], dim=1)


def region_channels(labels: torch.Tensor, regions: int, *, overlapping: bool) -> torch.Tensor:
    """Stored truth as channels: float32 (N, R, H, W), 1 where a region is, background first.

    Parameters
    ----------
    labels
        uint8 (N, H, W): label values 0 to R - 1, or, where regions are ``overlapping``, bit r set for region r.
    regions
        R, with the background.
    """
    values = torch.arange(regions, dtype=torch.uint8, device=labels.device).view(1, -1, 1, 1)
    if not overlapping:
        return (labels[:, None] == values).float()
    channels = (labels[:, None] >> values) & 1
    channels[:, 0] = labels == 0
    return channels.float()
