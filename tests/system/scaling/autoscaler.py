"""How many workers KEDA and Kubernetes would run, by what deploy/kubernetes/keda says; and processes that do it."""

import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
SCALED = yaml.safe_load((ROOT / "deploy/kubernetes/keda/scaling.yaml").read_text().split("\n---\n")[0])["spec"]
QUERY: str = SCALED["triggers"][0]["metadata"]["query"]
TOLERANCE = 0.1
"""The horizontal autoscaler leaves the number alone while demand is within a tenth of it."""


@dataclass
class Autoscaler:
    """KEDA between 0 and 1, the horizontal autoscaler above; seconds are those of deploy/kubernetes over `speed`."""

    speed: float = 1
    active_at: float = -math.inf
    asked_for: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        behavior = SCALED["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        self.poll_s = SCALED["pollingInterval"] / self.speed
        self.cooldown_s = SCALED["cooldownPeriod"] / self.speed
        self.steady_s = behavior["scaleDown"]["stabilizationWindowSeconds"] / self.speed
        self.most = SCALED["maxReplicaCount"]

    def replicas(self, now: float, current: int, demand: int) -> int:
        """How many there should be from now on."""
        if demand:
            self.active_at = now
        if current == 0:
            return min(demand, 1)
        if now - self.active_at >= self.cooldown_s:
            return 0
        close = abs(demand / current - 1) <= TOLERANCE
        self.asked_for = [each for each in self.asked_for if now - each[0] < self.steady_s]
        self.asked_for.append((now, current if close else min(max(demand, 1), self.most)))
        wanted = self.asked_for[-1][1]
        return wanted if wanted >= current else min(current, max(number for _, number in self.asked_for))


class Cluster:
    """Worker processes, as many as are wanted; `changes` says when there were how many."""

    def __init__(self, database: str, **settings: Any) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("sleeper.py")), database]
        self._environment = os.environ | {f"LORACOMP_{name.upper()}": str(value) for name, value in settings.items()}
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopping: list[subprocess.Popen[bytes]] = []
        self.changes: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def __len__(self) -> int:
        return len(self._running)

    def scale(self, wanted: int) -> None:
        """Start workers, or stop the newest by SIGTERM."""
        if wanted != len(self):
            self.changes.append((time.monotonic(), wanted))
        while len(self) < wanted:
            self._running.append(subprocess.Popen(self._command, env=self._environment))
        while len(self) > wanted:
            leaving = self._running.pop()
            leaving.terminate()
            self._stopping.append(leaving)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *error: object) -> None:
        self.scale(0)
        codes = [each.wait(60) for each in self._stopping]
        assert set(codes) <= {0}, codes
