"""What runs inside VBench's own environment, as a script: `python -I inside.py [request.json]`.

The request names one dimension, the videos' folder, the mode, the device, the full-info file and a folder for the
results. The package writes `<results>/scores_eval_results.json`: {dimension: [mean, [{video_path, video_results}]]}.
Without a request it only imports the package.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch


def complete_torchvision() -> torch.library.Library | None:
    """Declare the operators that torchvision refers to on import, where its compiled part does not fit this torch.

    PyPI's torchvision is built against CUDA and its library does not load beside a CPU build of torch. Models and
    transforms, which are all that VBench uses, do without the operators; they need only be known by name. The
    declaration lasts as long as the object returned.
    """
    place = importlib.util.find_spec("torchvision").origin
    for library in Path(place).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            break
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    declared = torch.library.Library("torchvision", "DEF")
    declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return declared


def main(arguments: list[str]) -> None:
    declared = complete_torchvision()  # noqa: F841 - held while the package runs
    from vbench import VBench

    if not arguments:
        return
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    device = request["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = VBench(torch.device(device), request["full_info"], request["results"])
    bench.evaluate(
        videos_path=request["videos"],
        name="scores",
        dimension_list=[request["dimension"]],
        # CLIP from the folder of weights; DINO's "local" form would ignore the file there and load the hub's.
        local=request["dimension"] != "subject_consistency",
        mode=request["mode"],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
