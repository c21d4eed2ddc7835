"""The contender `torch`: the same work in PyTorch, eager or through `torch.compile`."""

import contextlib
import os
import time
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import torch_models
from benchmarks.batches import Batches
from benchmarks.workloads import Case


class Torch:
    """Model, fused AdamW and images on the device; bfloat16 by autocast, so that parameters stay float32 as ours do."""

    def __init__(self, case: Case, compiled: bool) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as XLA does
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        given = case.config()
        self.train, self.batches = case.mode == "train", Batches(case)
        size = self.batches.images.shape[1]
        torch.manual_seed(0)
        model: Any = torch_models.create(given.model, size, self.batches.classes).to(self.device)
        if given.model["name"].partition("/")[0] != "vit":
            model = model.to(memory_format=torch.channels_last)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.optimizer = torch.optim.AdamW(
            model.parameters(), given.optim.lr, weight_decay=given.optim.weight_decay, fused=True
        )
        self.images, self.labels = (
            torch.from_numpy(x).to(self.device) for x in (self.batches.images, self.batches.labels)
        )
        self.labels = self.labels.long()
        self.dtype = getattr(torch, case.dtype)
        model.train(self.train)
        self.model: Any = torch.compile(model) if compiled else model
        began = time.perf_counter()
        self.run(1)
        self.compile_seconds = time.perf_counter() - began  # of the first step: PyTorch compiles when first called

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.images, self.labels
        if not self.batches.whole:
            index = torch.from_numpy(self.batches.next()).to(self.device, non_blocking=True)
            images, labels = images[index], labels[index]
        return ((images.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2), labels

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device, self.dtype) if mixed else contextlib.nullcontext():
            return self.model(images)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            images, labels = self._batch()
            if self.train:
                loss = F.cross_entropy(self._forward(images).float(), labels)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            else:
                with torch.inference_mode():
                    self._forward(images)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None
