"""The plain form in graphs: ``torch.export`` and ONNX, for any number of rows."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradscore.closed_form import last_layer_score

SETTINGS = {
    "paper": {},
    "hot": {"temperature": 1000.0},
    "order-2": {"p": 2.0},
    "largest": {"p": math.inf},
    "root": {"p": 0.5, "temperature": 4.0},
    "one-hot": {"target": "one-hot", "p": 2.0},
}


class Scored(nn.Module):
    """The score as a module, since only modules are exported."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, features, logits):
        return last_layer_score(features, logits, **self.how)


def rows(batch):
    """Return features and logits, of every kind: drawn, nearly uniform, sharp, a class masked."""
    rng = torch.Generator().manual_seed(batch)
    x, f = torch.randn(batch, 6, generator=rng), 3 * torch.randn(batch, 7, generator=rng)
    f[1::4] *= 1e-12
    f[2::4, 3] += 60
    f[3::4, 5] = -1e4
    return x, f


def exported(how):
    batch = torch.export.Dim("batch")
    dynamic = {"features": {0: batch}, "logits": {0: batch}}
    return torch.export.export(Scored(how).eval(), rows(4), dynamic_shapes=dynamic)


@pytest.mark.parametrize("how", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_exported_graph_equals_it_for_any_number_of_rows(how):
    graph = exported(how).module()
    for batch in (1, 4, 9):
        x, f = rows(batch)
        torch.testing.assert_close(graph(x, f), last_layer_score(x, f, **how), rtol=2e-6, atol=0)


@pytest.mark.usefixtures("known_operators")
@pytest.mark.parametrize("how", SETTINGS.values(), ids=SETTINGS.keys())
def test_onnx_equals_it_for_any_number_of_rows(how, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = tmp_path / "score.onnx"
    program = torch.onnx.export(exported(how), dynamo=True, external_data=False, verbose=False)
    program.save(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 4, 9):
        x, f = rows(batch)
        (found,) = session.run(None, {"features": x.numpy(), "logits": f.numpy()})
        expected = last_layer_score(x, f, **how).numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=0)
