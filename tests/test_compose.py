"""The container files: valid for Compose, and true about the program they start."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from worker.cli import GROUP, main
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.yml"
SERVER = ROOT / "deploy" / "compose-server.yml"
LISTENER = ROOT / "deploy" / "compose-listener.yml"
SERVE = ROOT / "deploy" / "compose-serve.yml"
DOCKERFILE = ROOT / "Dockerfile"
SECRETS = "${SECRETS_FOLDER:-./deploy/secrets}"
PROJECT: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = PROJECT["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ONE_SHOT = {"migrate", "grants", "engines", "engines-gpu"}
#: Nothing waits for a trainer: its rebuilds have a schedule of their own.
UNCHECKED = ONE_SHOT | {"trainer"}
BUNDLES, ENGINES = "/var/lib/carina/bundles", "/var/lib/carina/engines"
each_service = pytest.mark.parametrize("name", SERVICES)


def settings_names() -> set[str]:
    names = {f"CARINA_{item.name.upper()}" for item in fields(Settings)}
    secrets = {f"CARINA_{item.name.upper()}_FILE" for item in fields(Settings) if item.metadata["secret"]}
    return names | secrets


def mounted_secrets(service: dict[str, Any]) -> set[str]:
    return {item if isinstance(item, str) else item["source"] for item in service.get("secrets", [])}


def instructions(keyword: str) -> list[str]:
    """The arguments of every such instruction, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text("utf-8")).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split(" ")[0] == keyword]


def parse_command(words: list[str]) -> None:
    """Let the program's own parser judge a command line, without running it."""
    command: click.Command | None = main
    context = click.Context(main)
    # Some groups do something by themselves.
    while isinstance(command, click.Group) and (words or not command.invoke_without_command):
        name, *words = words
        command = command.get_command(context, name)
    assert command is not None, name
    # Folders of the container need not exist on the machine that runs the tests.
    command.make_context(name, ["/" if word.startswith("/films") else word for word in words])


def substituted(words: list[str]) -> list[str]:
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(word)) for word in words]


@pytest.mark.parametrize("file", [COMPOSE, SERVER, LISTENER, SERVE], ids=lambda file: file.name)
def test_valid_for_the_compose_specification(file: Path) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_schema_refuses_what_it_should(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yml"
    broken.write_text(COMPOSE.read_text("utf-8").replace("    restart: unless-stopped", "    restarts: unless-stopped"))
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(broken)],
        capture_output=True,
    )
    assert checked.returncode == 1


@pytest.mark.parametrize(
    "extra",
    [[], ["-f", str(SERVER)], ["-f", str(LISTENER)], ["-f", str(SERVE)]],
    ids=["machine", "server", "listener", "serve"],
)
def test_docker_compose_accepts_it(extra: list[str], tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("docker compose is not installed")
    shown = subprocess.run(
        [docker, "compose", "-f", str(COMPOSE), *extra, "--profile", "*", "config", "--quiet"],
        env={
            "PATH": "/usr/bin:/bin",
            "FILMS_FOLDER": str(tmp_path),
            "SERVER_ADDRESS": "127.0.0.1",
            "LISTEN_PUBLISH": "127.0.0.1",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr


def test_what_starts_by_default() -> None:
    default = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert default == {"redis", "postgres", "migrate", "grants", "engines", "worker"}
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "worker-gpu": ["gpu"], "engines-gpu": ["gpu"], "watch": ["watch"], "listener": ["listener"],
        "trainer": ["trainer"], "delivery": ["delivery"], "serve": ["serve"],
    }  # fmt: skip


@each_service
def test_restarts_and_health(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")
    assert service["healthcheck"] == {"disable": True} if name in UNCHECKED else service["healthcheck"]["test"]


@each_service
def test_least_privilege(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "ports"}
    assert all(volume["read_only"] for volume in service.get("volumes", []) if isinstance(volume, dict))


@each_service
def test_images_are_pinned(name: str) -> None:
    tag = substituted([SERVICES[name]["image"]])[0].rpartition(":")[2]
    assert re.match(r"\d+\.\d+", tag)


def test_our_image_has_our_version() -> None:
    from worker import __version__

    assert {substituted([service["image"]])[0].partition(":")[2] for service in OURS.values()} == {__version__}


def test_resources_are_limited() -> None:
    for name in SERVICES:
        assert SERVICES[name]["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
    for name in ("worker-gpu", "engines-gpu"):
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


@each_service
def test_environment_is_known_to_the_program(name: str) -> None:
    given = {variable for variable in SERVICES[name].get("environment", {}) if variable.startswith("CARINA_")}
    assert given <= settings_names()


def test_the_image_sets_known_variables() -> None:
    assert set(re.findall(r"\bCARINA_[A-Z_]+(?==)", DOCKERFILE.read_text("utf-8"))) <= settings_names()


@each_service
def test_secrets_come_by_file(name: str) -> None:
    service = SERVICES[name]
    environment = service.get("environment", {})
    given = {variable for variable in environment if variable.endswith("_FILE")}
    assert {Path(environment[variable]).name for variable in given} <= mounted_secrets(service)
    assert mounted_secrets(service) <= PROJECT["secrets"].keys()
    words = re.compile(r"password|secret|token|_url$", re.IGNORECASE)
    assert [
        variable for variable in environment if words.search(variable.removesuffix("_FILE")) and variable not in given
    ] == []


def test_every_secret_is_a_file_and_used() -> None:
    assert {name: secret["file"] for name, secret in PROJECT["secrets"].items()} == {
        name: f"{SECRETS}/{name.replace('site_key', 'site.key')}" for name in PROJECT["secrets"]
    }
    assert PROJECT["secrets"].keys() == set().union(*map(mounted_secrets, SERVICES.values()))


def test_each_process_has_the_database_role_it_needs() -> None:
    role = {
        name: service["environment"]["CARINA_DATABASE_URL_FILE"]
        for name, service in OURS.items()
        if "environment" in service
    }
    assert {name: file.rpartition("_")[2] for name, file in role.items()} == {
        "migrate": "owner", "worker": "worker", "worker-gpu": "worker", "watch": "intake", "listener": "intake",
        "engines": "worker", "engines-gpu": "worker", "trainer": "worker", "delivery": "worker", "serve": "only",
    }  # fmt: skip


def test_every_volume_and_configuration_exists() -> None:
    named = [
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if isinstance(volume, str)
    ]
    assert set(named) == PROJECT["volumes"].keys()
    assert all((ROOT / config["file"]).is_file() for config in PROJECT["configs"].values())
    assert {item["source"] for service in SERVICES.values() for item in service.get("configs", [])} == PROJECT[
        "configs"
    ].keys()


def test_nothing_waits_for_what_does_not_come() -> None:
    for name, service in SERVICES.items():
        for other, wanted in service.get("depends_on", {}).items():
            assert set(SERVICES[other].get("profiles", [])) <= set(service.get("profiles", [])), name
            if wanted["condition"] == "service_healthy":
                assert "test" in SERVICES[other]["healthcheck"], name
            else:
                assert (wanted["condition"], other in ONE_SHOT) == ("service_completed_successfully", True), name


def test_commands_are_the_programs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # As the image's own installation says it, not the one that runs the tests.
    joined = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"][GROUP]
    monkeypatch.setattr(
        "worker.cli.entry_points", lambda group: [EntryPoint(name, target, group) for name, target in joined.items()]
    )
    started = {name: service for name, service in OURS.items() if "entrypoint" not in service}
    assert started.keys() == {
        "migrate", "engines", "engines-gpu", "worker", "worker-gpu", "watch", "listener", "delivery", "trainer",
        "serve",
    }  # fmt: skip
    for service in started.values():
        parse_command(substituted(service["command"]))


def mounts(name: str) -> dict[str, tuple[str, bool]]:
    """Where a named volume is seen → which one, and whether it can be written."""
    found = {}
    for volume in SERVICES[name].get("volumes", []):
        if isinstance(volume, str):
            source, target, *mode = volume.split(":")
            found[target] = (source, mode != ["ro"])
    return found


def test_workers_can_change_neither_bundles_nor_engines() -> None:
    for worker, engines in (("worker", "engines"), ("worker-gpu", "engines-gpu")):
        assert mounts(worker)[BUNDLES] == ("bundles", False)
        assert mounts(worker)[ENGINES] == (engines, False)
        assert SERVICES[worker]["environment"]["CARINA_ENGINE_BUILD"] == "never"
        # What they cannot build is there before they start.
        assert SERVICES[worker]["depends_on"][engines] == {"condition": "service_completed_successfully"}
        assert mounts(engines)[BUNDLES] == ("bundles", True)
        assert mounts(engines)[ENGINES] == (engines, True)
        assert SERVICES[engines]["image"] == SERVICES[worker]["image"]


def test_the_trainer_sees_films_it_cannot_change_and_leaves_its_bundles_to_the_workers() -> None:
    trainer = SERVICES["trainer"]
    assert mounts("trainer")[BUNDLES] == ("bundles", True) and mounts("trainer")[ENGINES] == ("engines", True)
    assert [volume["target"] for volume in trainer["volumes"] if isinstance(volume, dict)] == ["/films"]
    words = substituted(trainer["command"])
    assert words[0] == "rebuild" and {"--watch", "--from-database"} <= set(words)
    assert "CARINA_ENGINE_BUILD" not in trainer["environment"]


def test_health_checks_ask_for_the_oldest_ready_film() -> None:
    checks = [
        substituted(SERVICES[name]["healthcheck"]["test"]) for name in ("worker", "worker-gpu", "watch", "listener")
    ]
    checks += [["CMD", *map(str, yaml.safe_load(text.partition(" CMD ")[2]))] for text in instructions("HEALTHCHECK")]
    for check in checks:
        assert check[:4] == ["CMD", "carina", "status", "--fail-if-waiting-longer"]
        parse_command(check[2:])


def test_only_the_delivery_reaches_outside_and_is_ill_when_results_do_not_get_there() -> None:
    assert [name for name, service in SERVICES.items() if "hospital" in service["networks"]] == ["delivery"]
    assert PROJECT["networks"]["hospital"] == {}
    check = substituted(SERVICES["delivery"]["healthcheck"]["test"])
    assert check[:5] == ["CMD", "carina", "deliver", "status", "--fail-if-waiting-longer"]
    parse_command(check[2:])
    assert all(volume["read_only"] for volume in SERVICES["delivery"]["volumes"] if isinstance(volume, dict))


def test_only_the_listener_writes_the_spool_and_all_who_read_films_see_it() -> None:
    spool = "/var/lib/carina/spool"
    assert mounts("listener")[spool] == ("spool", True)
    for name in ("worker", "worker-gpu", "trainer", "delivery"):
        assert mounts(name)[spool] == ("spool", False)
    published = yaml.safe_load(LISTENER.read_text("utf-8"))["services"]["listener"]["ports"]
    assert published == [
        "${LISTEN_PUBLISH:?set LISTEN_PUBLISH to the address that senders call}:${LISTEN_PORT:-11112}:11112"
    ]


def test_every_stage_that_is_run_has_a_user() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    bodies = {stage.splitlines()[0].split(" AS ")[1]: stage for stage in stages}
    for service in OURS.values():
        body = bodies[service["build"]["target"]]
        assert re.search(r"^USER carina$", body, re.MULTILINE)
        assert body.index("USER carina") > body.rindex("RUN ")
        assert re.search(r"^ENTRYPOINT \[", body, re.MULTILINE)
    assert list(bodies)[-1] == "worker", "the last stage is the default"


def test_the_dockerfile_installs_what_is_pinned() -> None:
    assert instructions("ADD") == []
    assert not any("://" in run for run in instructions("RUN"))
    pip = [run for run in instructions("RUN") if "pip " in run]
    assert len(pip) == 6
    for run in pip:
        assert "-c constraints.txt" in run or "--no-index --find-links /wheels" in run
    for image in [text for text in instructions("ARG") if "IMAGE" in text]:
        assert re.search(r":\d+\.\d+[\w.-]*$", image)


def test_extras_exist_and_only_the_trainer_has_torch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    asked = [set(found.split(",")) for found in re.findall(r"\[([a-z,]+)\]'", DOCKERFILE.read_text("utf-8"))]
    assert set().union(*asked) <= extras.keys()
    assert [group for group in asked if "train" in group] == [{"postgresql", "cluster", "train"}] * 2


def test_copied_files_exist_and_are_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = {word for text in instructions("COPY") if not text.startswith("--from") for word in text.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
