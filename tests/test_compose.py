"""docker-compose.yml and deploy/Dockerfile, as far as they can be checked without Docker."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from loracomp.cli import app, commands
from loracomp.config import Settings
from loracomp.worker.endpoint import Endpoint

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def command_lines(service: dict[str, Any]) -> list[list[str]]:
    """What a container runs of ours, each from `loracomp` on."""
    if "build" not in service:
        return []
    whole = [service["entrypoint"][-1]] if "entrypoint" in service else [" ".join(["loracomp", *service["command"]])]
    return [line.split() for line in whole[0].split(" && ")]


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_container_runs_is_a_command(service: str) -> None:
    commands.register(app)
    for program, *words in command_lines(SERVICES[service]):
        assert program == "loracomp"
        command = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]


@pytest.mark.parametrize("service", SERVICES)
def test_secrets_come_from_outside_and_are_asked_for(service: str) -> None:
    for name, value in SERVICES[service].get("environment", {}).items():
        if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
            assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", str(value)), f"{name} stands in the file"
        assert not re.search(r"://[^@/]*:[^@/]*@", str(value)), f"{name} holds a password"


@pytest.mark.parametrize("service", SERVICES)
def test_settings_exist(service: str) -> None:
    for name in SERVICES[service].get("environment", {}):
        if name.startswith("LORACOMP_"):
            assert name.removeprefix("LORACOMP_").lower() in Settings.model_fields


def test_who_goes_on_running_has_a_health_check_and_who_waits_for_whom() -> None:
    assert {name for name, service in SERVICES.items() if "healthcheck" in service} == {
        "postgres", "worker", "worker-gpu",
    }  # fmt: skip
    waits = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    assert waits["schema"] == {"postgres": {"condition": "service_healthy"}}
    assert waits["worker"] == waits["worker-gpu"] == {"schema": {"condition": "service_completed_successfully"}}


@pytest.mark.parametrize("service", ["worker", "worker-gpu"])
def test_a_workers_health_check_asks_its_endpoint_whether_it_is_ready(service: str) -> None:
    port = SERVICES[service]["environment"]["LORACOMP_METRICS_PORT"]
    command, *arguments, code = SERVICES[service]["healthcheck"]["test"]
    assert (command, arguments) == ("CMD", ["python", "-c"])
    address = f"http://127.0.0.1:{port}/"
    assert address in code

    def check() -> int:
        here = code.replace(address, f"http://127.0.0.1:{endpoint.port}/")
        return subprocess.run([sys.executable, "-c", here], capture_output=True, check=False).returncode

    with Endpoint("127.0.0.1", 0) as endpoint:
        assert check() == 1
        endpoint.problems = dict
        assert check() == 0
    assert check() == 1


def test_the_worker_has_a_login_of_its_own_and_time_to_stop() -> None:
    worker = SERVICES["worker"]
    assert "worker@" in worker["environment"]["LORACOMP_DATABASE_URL"]
    assert "IN ROLE loracomp_worker" in (ROOT / "deploy" / "worker-role.sh").read_text()
    assert int(worker["stop_grace_period"].removesuffix("s")) > Settings.model_fields["grace_s"].default


def test_only_the_gpu_profile_asks_for_a_gpu() -> None:
    assert [name for name, service in SERVICES.items() if "deploy" in service] == ["worker-gpu"]
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_no_rights_and_writes_only_where_it_must(service: str) -> None:
    found = SERVICES[service]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    user = found.get("user") or re.findall(r"^USER (\S+)$", DOCKERFILE, flags=re.M)[-1]
    assert user in ("postgres", "1000:1000")


def test_what_the_image_is_built_of_is_there() -> None:
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.M)
    copied = {word for words in copies for word in words.split()}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
