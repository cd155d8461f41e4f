"""The export: a generator as an ONNX file, which other programs draw from without torch."""

from __future__ import annotations

import importlib.util
import io
import logging
from contextlib import redirect_stdout

import torch

from transfer import UserError
from transfer.drawing import generator, latents
from transfer.shared import Source

FAR = 1e-3  # of an image's range of 2: more is another image
COUNT = 5  # latents that are compared


def as_onnx(source: Source) -> tuple[bytes, float | None]:
    """The averaged generator, "z" (N, latent) -> "images" (N, 3, H, W) in [-1, 1] for any N, as an ONNX file.

    Returns:
        The file's content, and how far at most it is from torch's images of the same latents; None where
        onnxruntime is not installed, so that nothing was compared.

    Raises:
        UserError: when onnx is not installed, or the file draws other images than torch.
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UserError("export needs onnx and onnxscript: pip install -r requirements-export.txt")
    network, z = generator(source), latents(source, COUNT, 0)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # its notes are about networks with gradients
    with redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            network,
            (z[:2],),
            dynamo=True,
            input_names=["z"],
            output_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    content = program.model_proto.SerializeToString()
    if importlib.util.find_spec("onnxruntime") is None:
        return content, None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (images,) = session.run(["images"], {"z": z.numpy()})
    distance = float((torch.from_numpy(images) - network(z)).abs().max())
    if not distance < FAR:
        raise UserError(
            f"the ONNX file would draw other images than torch, {distance:.3g} off, and is not written: try"
            " other versions of onnx and onnxscript"
        )
    return content, distance
