"""deploy/kubernetes, as far as it can be checked without a cluster: schemas, commands, settings, secrets, the query."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
import yaml
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from loracomp.cli import app, commands
from loracomp.config import Settings
from people_fixtures import login

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
WHOLE = [path for folder in ("base", "keda", "prometheus") for path in sorted((FOLDER / folder).glob("*.yaml"))]
OPERATORS = {"ScaledObject", "TriggerAuthentication", "PodMonitor"}


def documents(text: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(text) if each]


def found(kind: str) -> dict[str, Any]:
    (one,) = (each for path in WHOLE for each in documents(path.read_text()) if each["kind"] == kind)
    return one


def pod(kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = found(kind)["spec"]["template"]["spec"]
    return spec


def check(document: dict[str, Any]) -> None:
    """Raise unless it is what Kubernetes' schema says, and nothing besides."""
    if document["kind"] not in OPERATORS and not document["apiVersion"].startswith("kustomize."):
        import kubernetes_validate  # which takes seconds, in each process that collects this file

        kubernetes_validate.validate(document, "1.30", strict=True)


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_each_object_is_what_its_schema_says(path: Path) -> None:
    for document in documents(path.read_text()):
        check(document)


def test_a_name_that_no_schema_has_is_found() -> None:
    from kubernetes_validate import ValidationError

    document = found("Deployment")
    document["spec"]["replica"] = 1
    with pytest.raises(ValidationError, match="replica"):
        check(document)


def test_what_operators_read_is_what_their_schemas_say(tmp_path: Path) -> None:
    """In an environment of its own: see operator_schemas.py."""
    if not (environment := os.environ.get("OPERATOR_SCHEMAS")):
        pytest.skip("needs the schemas of KEDA and of Prometheus' operator: make test-kubernetes")
    program = [f"{environment}/bin/python", ROOT / "tests" / "operator_schemas.py"]
    printed = subprocess.check_output([*program, *WHOLE], text=True)
    assert set(printed.split()) == OPERATORS
    wrong = tmp_path / "wrong.yaml"
    for kind in OPERATORS:
        document = found(kind)
        document["spec"]["replica"] = 1
        wrong.write_text(yaml.safe_dump(document))
        assert subprocess.run([*program, wrong], check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_overlays_are_built(overlay: str) -> None:
    if not shutil.which("kustomize"):
        pytest.skip("needs Debian's kustomize")
    built = documents(subprocess.check_output(["kustomize", "build", str(FOLDER / overlay)], text=True))
    for document in built:
        check(document)
    by_kind = {document["kind"]: document for document in built}
    kinds = "Deployment Job NetworkPolicy PodDisruptionBudget PodMonitor ScaledObject TriggerAuthentication"
    assert sorted(by_kind) == kinds.split()
    (worker,) = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert worker["image"].startswith("registry.example/loracomp:")
    assert ("nvidia.com/gpu" in worker["resources"]["limits"]) == (overlay == "gpu")
    assert [each["value"] for each in worker["env"] if each["name"] == "LORACOMP_DEVICE"] == [
        {"cpu": "cpu", "gpu": "cuda"}[overlay]
    ]
    labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        assert by_kind[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_what_a_container_runs_is_a_command() -> None:
    commands.register(app)
    (schema,), (worker,) = pod("Job")["containers"], pod("Deployment")["containers"]
    lines = [*schema["command"][-1].split(" && "), " ".join(["loracomp", *worker["args"]])]
    for program, *words in map(str.split, lines):
        assert program == "loracomp"
        command = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_settings_exist_and_secrets_are_referred_to(path: Path) -> None:
    for document in documents(path.read_text()):
        assert document["kind"] != "Secret"
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            for variable in container.get("env", []):
                name = variable["name"]
                if name.startswith("LORACOMP_"):
                    assert name.removeprefix("LORACOMP_").lower() in Settings.model_fields
                if re.search("PASSWORD|SECRET|TOKEN|KEY|URL", name):
                    assert set(variable) == {"name", "valueFrom"}, f"{name} stands in the file"


@pytest.mark.parametrize("kind", ["Job", "Deployment"])
def test_nothing_runs_as_root_or_writes_to_its_image(kind: str) -> None:
    assert pod(kind)["securityContext"]["runAsNonRoot"]
    assert f"--uid {pod(kind)['securityContext']['runAsUser']}" in (ROOT / "deploy" / "Dockerfile").read_text()
    assert not pod(kind)["automountServiceAccountToken"]
    for container in pod(kind)["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert mounted == {"home": "/var/lib/loracomp", "tmp": "/tmp"}
    assert "ENV LORACOMP_HOME=/var/lib/loracomp" in (ROOT / "deploy" / "Dockerfile").read_text()


def test_a_worker_has_time_to_stop_and_probes_ask_its_endpoint() -> None:
    assert pod("Deployment")["terminationGracePeriodSeconds"] > Settings.model_fields["grace_s"].default
    (worker,) = pod("Deployment")["containers"]
    (port,) = worker["ports"]
    environment = {each["name"]: each.get("value") for each in worker["env"]}
    assert environment["LORACOMP_METRICS_PORT"] == str(port["containerPort"])
    assert environment["LORACOMP_METRICS_HOST"] == "0.0.0.0"
    asked = {probe: worker[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")}
    assert asked == {
        "startup": {"path": "/ready", "port": port["name"]},
        "readiness": {"path": "/ready", "port": port["name"]},
        "liveness": {"path": "/metrics", "port": port["name"]},
    }
    assert [each["port"] for each in found("PodMonitor")["spec"]["podMetricsEndpoints"]] == [port["name"]]


def test_the_number_of_workers_is_the_scalers_to_decide() -> None:
    assert "replicas" not in found("Deployment")["spec"]
    scaled = found("ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == found("Deployment")["metadata"]["name"]
    assert scaled["minReplicaCount"] == 0
    (trigger,) = scaled["triggers"]
    assert trigger["authenticationRef"]["name"] == found("TriggerAuthentication")["metadata"]["name"]
    assert trigger["metadata"]["targetQueryValue"] == "1"


@pytest.fixture
def scaler(database: str) -> Iterator[str]:
    """URL of the database as the login that docs/operations.md makes for the scaler, under a name of this run's own."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"```sql\n(CREATE ROLE scaling .*?)```", page, flags=re.DOTALL)
    name = login("scaling")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(re.sub(r"\bscaling\b", name, block).encode())
        yield make_conninfo(database, user=name)
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


def test_the_scalers_login_may_ask_for_the_number_and_read_nothing_else(
    database: str, scaler: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute(
        "INSERT INTO loracomp.base_model"
        " (name, source, fingerprint, architecture, context_length, parameter_count, modules, is_default)"
        " VALUES ('tiny', 'nowhere', repeat('a', 64), 'Tiny', 128, 1, '{}', TRUE)"
    )
    query = found("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    with psycopg.connect(scaler, autocommit=True) as opened:
        assert opened.execute(query.encode()).fetchall() == [(0,)]
        connection.execute("INSERT INTO loracomp.job (prompt) VALUES ('a')")
        assert opened.execute(query.encode()).fetchall() == [(1,)]
        objects = opened.execute(
            "SELECT c.oid::regclass::text FROM pg_class AS c"
            " WHERE c.relnamespace::regnamespace::text IN ('loracomp', 'bi')"
            " AND c.relkind IN ('r', 'v', 'm', 'S') AND has_any_column_privilege(c.oid, 'SELECT, INSERT, UPDATE')"
        ).fetchall()
        functions = opened.execute(
            "SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi')"
            " AND has_function_privilege(p.oid, 'EXECUTE')"
        ).fetchall()
        assert (objects, functions) == ([], [("worker_demand",)])
        for statement in ("SELECT FROM loracomp.job", "SELECT FROM bi.queue_health", "SELECT loracomp.rescue_jobs()"):
            with pytest.raises(errors.InsufficientPrivilege):
                opened.execute(statement.encode())
