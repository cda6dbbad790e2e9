"""Every YAML: its targets exist and take exactly the keys that are given, by their signatures, without building."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_jepa.build import HYDRA_KEYS, build, nodes
from lightning_jepa.compare import composed as arm_of
from lightning_jepa.paths import CONF
from lightning_jepa.world_model.latent_jepa import LatentJEPA

FILES = sorted(Path(CONF).rglob("*.yaml"))
GROUPS = sorted(p for p in Path(CONF).iterdir() if p.is_dir() and p.name not in ("hydra", "experiment", "callbacks"))
OPTIONS = [f"{group.name}={file.stem}" for group in GROUPS for file in sorted(group.glob("*.yaml"))]
EXPERIMENTS = [file.stem for file in FILES if file.parent.name == "experiment"]


def faults(node: Mapping[str, Any], complete: bool) -> Iterator[str]:
    """What is wrong with the node's keys; `complete` asks for those without a default too."""
    signature = inspect.signature(hydra.utils.get_object(node["_target_"]))
    given = {key: None for key in node if key not in HYDRA_KEYS}
    try:
        signature.bind(**given) if complete and not node.get("_partial_") else signature.bind_partial(**given)
    except TypeError as error:
        yield f"{node['_target_']}: {error}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_targets_of_a_file_exist_and_take_its_keys(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    content.pop("defaults", None)
    assert [fault for node in nodes(content) for fault in faults(node, complete=False)] == []


def composed(*overrides: str, name: str | None = "config") -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(name, list(overrides))


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_gives_its_targets_all_they_need(option: str) -> None:
    """Composed alone, with the defaults it inherits; interpolations stay as they are."""
    content = OmegaConf.to_container(composed(f"+{option}", name=None), resolve=False)
    assert [fault for node in nodes(content) for fault in faults(node, complete=True)] == []


@pytest.mark.parametrize("experiment", [None, *EXPERIMENTS])
def test_the_whole_configuration_resolves(experiment: str | None, tmp_path: Path) -> None:
    """Every interpolation finds its key, and what the resolved configuration describes could be built."""
    chosen = [f"experiment={experiment}"] if experiment else []
    content = OmegaConf.to_container(composed(f"paths.out={tmp_path}", *chosen), resolve=True, throw_on_missing=True)
    assert [fault for node in nodes(content) for fault in faults(node, complete=True)] == []


PLANNERS = sorted(file.stem for file in (Path(CONF) / "planner").glob("*.yaml"))


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("experiment", ["two_rooms", "hazards"])
def test_another_planner_takes_the_place_of_an_experiments_own(experiment: str, planner: str) -> None:
    """As the pages say; nothing of the one that was there is left in its place."""
    content = OmegaConf.to_container(composed(f"experiment={experiment}", f"planner={planner}").planner, resolve=False)
    assert [fault for node in nodes(content) for fault in faults(node, complete=True)] == []


LATENTS = sorted(file.stem for file in (Path(CONF) / "latent").glob("*.yaml"))


@pytest.mark.parametrize("latent", LATENTS)
def test_a_latent_variable_is_one_switch(latent: str) -> None:
    """It makes the model one with z, and gives its term a weight; a map says how many numbers it has."""
    content = composed("experiment=two_rooms", f"latent={latent}", "latent.state_size=1296")
    model = build(content.stage).jepa
    assert isinstance(model, LatentJEPA)
    assert model.action_size == 2
    assert {"prior", "information"} & content.stage.weights.keys()


def test_no_criterion_is_a_choice() -> None:
    content = composed("experiment=collapse", "comparison=null", "criterion=none")
    assert build(content.stage).criteria.keys() == set()


def arms() -> list[tuple[str, str]]:
    found = [(name, yaml.safe_load((Path(CONF) / "experiment" / f"{name}.yaml").read_text())) for name in EXPERIMENTS]
    return [(name, arm) for name, content in found for arm in content.get("comparison", {}).get("arms", {})]


@pytest.mark.parametrize(("experiment", "arm"), arms())
def test_every_arm_resolves(experiment: str, arm: str, tmp_path: Path) -> None:
    """An arm's overrides meet the experiment's, and what comes out could be built; weights are those of its terms."""
    given = [f"experiment={experiment}", f"paths.out={tmp_path}"]
    with initialize_config_dir(CONF, version_base="1.3"):
        content = OmegaConf.to_container(arm_of(compose("config", given), given, arm), resolve=True)
    assert isinstance(content, dict)
    assert [fault for node in nodes(content) for fault in faults(node, complete=True)] == []
    assert [node for node in nodes(content) if "None" in node.values()] == []  # what it refers to is the arm's own
    assert ("variance" in content["stage"]["weights"]) == ("vicreg" in (content["criterion"] or {}))
    assert content["comparison"]["headline"]


def test_each_class_has_one_yaml_of_its_own() -> None:
    """No two files of a group describe the same class with the same keys."""
    seen: dict[str, str] = {}
    for file in FILES:
        text = "\n".join(line.partition("#")[0].rstrip() for line in file.read_text(encoding="utf-8").splitlines())
        assert text not in seen, f"{file} repeats {seen[text]}"
        seen[text] = str(file)


@pytest.mark.parametrize(
    ("node", "complete"),
    [
        ({"_target_": "torch.optim.AdamW", "_partial_": True, "lrr": 1}, False),
        ({"_target_": "torch.nn.Linear", "in_features": 1}, True),
    ],
)
def test_a_wrong_key_is_found(node: dict[str, Any], complete: bool) -> None:
    assert len(list(faults(node, complete))) == 1
