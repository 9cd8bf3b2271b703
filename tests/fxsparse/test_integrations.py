"""Callbacks in the real Lightning and transformers, on tiny runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsparse as fxs
from fxsparse.integrations.attaching import attach_all, compiled_models, plain_optimizer, sparsity_of

RIGL = fxs.RigL(sparsity=0.7, end=1000, interval=2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))


def make() -> fxs.CompiledModel:
    return fxs.compile(network(), RIGL, (torch.randn(4, 6),))


def rows(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 6, generator=generator), torch.randint(5, (4,), generator=generator)) for _ in range(count)]


def by_hand(data: list[tuple[Tensor, Tensor]], build: Any) -> fxs.CompiledModel:
    compiled = make()
    optimizer = build(compiled.parameters())
    compiled.attach(optimizer)
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        optimizer.step()
    return compiled


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-2)


def require_same(found: nn.Module, expected: nn.Module) -> None:
    state = expected.state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_what_the_callbacks_share() -> None:
    compiled = make()
    whole = nn.ModuleDict({"net": compiled, "head": nn.Linear(5, 2)})
    assert list(compiled_models(whole)) == ["net"]
    assert sparsity_of(whole) == pytest.approx(0.7, abs=0.01)
    with pytest.raises(fxs.PolicyError, match="there is no compiled model in Linear"):
        compiled_models(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(compiled.parameters(), 0.1)

    class Wrapper:
        def __init__(self, inner: Any) -> None:
            self.optimizer = inner

    assert plain_optimizer(Wrapper(Wrapper(optimizer))) is optimizer
    other = torch.optim.SGD(whole["head"].parameters(), 0.1)
    [handle] = attach_all(whole, [Wrapper(optimizer), other])
    handle.remove()


def test_lightning_trains_checkpoints_and_resumes(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="needs Lightning: pip install 'fxsparse[lightning]'")
    from fxsparse.integrations.lightning import FxSparseCallback

    class Task(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = make()
            self.seen: list[tuple[Tensor, Tensor]] = []

        def training_step(self, batch: Any, _: int) -> Tensor:
            self.seen.append(batch)
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return adamw(self.parameters())

    def trainer(steps: int) -> Any:
        return lightning.Trainer(
            max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, callbacks=[FxSparseCallback()], enable_checkpointing=False,
        )  # fmt: skip

    def loader() -> Any:
        return torch.utils.data.DataLoader(rows(9), batch_size=None)  # type: ignore[arg-type,var-annotated]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = Task()
        first = trainer(9)
        first.fit(task, loader())
        require_same(task.net, by_hand(task.seen, adamw))
        assert int(task.net.regimes[0].steps) == 9
        first.save_checkpoint(tmp_path / "at9.ckpt")
        with pytest.raises(fxs.FxSparseError, match="attach"):
            task.net(torch.randn(4, 6))
        again = Task()
        trainer(18).fit(again, loader(), ckpt_path=tmp_path / "at9.ckpt", weights_only=False)
        assert int(again.net.regimes[0].steps) == 18
        assert len(again.seen) == 9
        require_same(again.net, by_hand([*task.seen, *again.seen], adamw))

        class Dense(Task):
            def __init__(self) -> None:
                super().__init__()
                self.net = network()  # type: ignore[assignment]

        with pytest.raises(fxs.PolicyError, match="there is no compiled model in Dense"):
            trainer(2).fit(Dense(), loader())


def test_transformers_trainer_trains_checkpoints_and_resumes(tmp_path: Path) -> None:
    reason = "needs transformers and accelerate: pip install 'fxsparse[transformers]'"
    transformers = pytest.importorskip("transformers", reason=reason)
    pytest.importorskip("accelerate", reason=reason)
    from fxsparse.integrations.transformers import FxSparseCallback

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            out = self.net(x)
            return {"loss": F.cross_entropy(out, labels), "logits": out}

    data = [{"x": x[i], "labels": y[i]} for x, y in rows(9) for i in range(4)]

    def trainer(folder: str, steps: int) -> Any:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=steps, report_to=[],
            use_cpu=True, save_strategy="steps", save_steps=5, learning_rate=1e-2, lr_scheduler_type="constant", logging_steps=3,
            disable_tqdm=True, seed=0,
        )  # fmt: skip
        return transformers.Trainer(model=Classifier(), args=arguments, train_dataset=data, callbacks=[FxSparseCallback()])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, first, rest = trainer("whole", 9), trainer("parts", 5), trainer("parts", 9)
        whole.train()
        first.train()
        rest.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-5"))
    net = whole.model.net
    assert int(net.regimes[0].steps) == 9, "two accumulated batches are one step"
    require_same(rest.model.net, net)
    assert [row["sparsity"] for row in whole.state.log_history] == [pytest.approx(0.7, abs=0.01)] * 4
    for name, row in net.sparsity().items():
        assert row["weight"]["actual"] == row["weight"]["target"], name
        mask = net.get_buffer(f"fxsparse.sites.{name}.mask")
        assert not bool(net.get_parameter(name).detach()[~mask].any())
    with pytest.raises(fxs.FxSparseError, match="attach"):
        net(torch.randn(4, 6))


def test_without_the_library_the_message_says_what_to_install() -> None:
    for name in ("lightning", "transformers"):
        try:
            __import__(name)
        except ImportError:
            with pytest.raises(fxs.FxSparseError, match=rf"pip install 'fxsparse\[{name}\]'"):
                __import__(f"fxsparse.integrations.{name}")
