"""The words that go with a bundle."""

from __future__ import annotations

from typing import Any

_PHANTOM = """\
# Model card: phantom 1

**Research use, not a medical device.** Nobody may be diagnosed or treated by what this bundle says.

## What it is
Two small networks that show the software working from end to end before anyone has trained it on
films of their own: a U-Net after Holste et al. ({segmenter:,} parameters) for eight chest regions, and
a classifier ({classifier:,} parameters) for `pneumonia` and `no_finding` with a class activation map.
Both look at half the resolution of the 256 x 256 grid.

## What it learned from
**Synthetic radiographs only** (`worker.phantom`): drawn by a program, {steps:,} training batches, seed {seed}.
No picture of a patient was used, neither for training nor for choosing thresholds. The truth of
every region is exact because it was drawn with the picture; how the regions are bounded is said in
`worker/phantom/anatomy.py`. While the phantoms' shapes and the networks' resolution were being designed,
results were looked at on public real films; agreement with those is therefore no independent test.

## What was measured
On {films} held-out *phantoms* (mean and 95 % bootstrap interval over films). These figures say that the
networks learned the phantoms; they are **not** evidence about patients.

| region | Dice | 95 % interval |
|---|---|---|
{dice}

Of {not_chests} held-out pictures that show no frontal chest, {strange} were given more than 2 % lung.

| finding | AUROC | 95 % interval |
|---|---|---|
{findings}

## Limits
- Real films differ from phantoms in more ways than the phantoms vary. Regions on real films are
  often right but must be looked at; spine, mediastinum, subdiaphragm and carina were never compared with
  anyone's drawing.
- The pneumonia score knows only the phantoms' patchy opacities. On real films of children it told
  pneumonia from normal films poorly: it shows that the software works, and must not be reported.
- Children and adults, AP and PA are drawn; tubes, effusions, collapse, deformities and devices hardly are.
- Replace it by a bundle trained and evaluated on films of your own patients.
"""


def phantom_model_card(metrics: dict[str, Any], recipe: dict[str, Any], parameters: list[int]) -> str:
    """The phantom bundle's model card, Markdown.

    ``metrics`` and ``recipe`` are the manifest's; ``parameters`` are the segmentation network's and the
    classifier's numbers of parameters.
    """

    def row(name: str, value: float, interval: list[float]) -> str:
        return f"| {name.replace('_', ' ')} | {value:.3f} | {interval[0]:.3f}-{interval[1]:.3f} |"

    return _PHANTOM.format(
        segmenter=parameters[0],
        classifier=parameters[1],
        steps=recipe["steps"],
        seed=recipe["seed"],
        films=metrics["films"],
        not_chests=metrics["not_chests"],
        strange=metrics["not_chests_with_lung_over_2_percent"],
        dice="\n".join(row(name, d["mean"], d["interval"]) for name, d in metrics["dice"].items()),
        findings="\n".join(row(name, f["auroc"], f["interval"]) for name, f in metrics["findings"].items()),
    )
