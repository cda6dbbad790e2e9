"""The whole chain on the real parts: collect, pretrain, evaluate, again, from any stage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import TEST_CONF, configuration
from mlflow.tracking import MlflowClient
from omegaconf import DictConfig
from PIL import Image

from data_pipelines.schema import Manifest
from data_pipelines.shards import verify
from lightning_jepa import checkpoint, pipeline, train
from lightning_jepa.evaluation import results
from lightning_jepa.evaluation.results import Results
from lightning_jepa.evaluation.tables import main_tables, summary
from lightning_jepa.precision import half
from lightning_jepa.world_model.hierarchy import HierarchicalJEPA

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parent.parent
DDP = ("trainer.devices=2", "trainer.strategy=ddp")
TIMES = ("ms_per_decision", "mode1_speedup")
FRAMES = 2 * 15 * 16 * (9 + 4)  # epochs, steps, batch, frames of both levels


@dataclass(frozen=True)
class Chain:
    """A pipeline that ran: its root, and what it wrote."""

    root: Path
    written: Path

    @property
    def checkpoint(self) -> Path:
        return self.root / "first" / "pretrain_seed_0" / checkpoint.LAST

    @property
    def distilled(self) -> Path:
        return self.root / "first" / "distill_seed_0" / "round_1" / checkpoint.LAST

    def configuration(self, run: str, *overrides: str) -> DictConfig:
        return configuration(self.root, run, *overrides)

    def results(self) -> Results:
        return results.load(self.written)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Chain:
    root = tmp_path_factory.mktemp("chain")
    shutil.copy(empty_store, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        written = pipeline.pipeline(configuration(root, "first"))
    assert written is not None
    return Chain(root, written)


def without_times(found: Results) -> dict[str, object]:
    """What two runs with the same seed must agree in."""
    tables = {
        table: {name: {key: row[key] for key in row if key != "ms_per_decision"} for name, row in rows.items()}
        for table, rows in found.tables.items()
    }
    metrics = {key: figure for key, figure in found.metrics.items() if key not in TIMES}
    return {"metrics": metrics, "floors": found.floors, "controls": found.controls, "tables": tables}


def test_collect_leaves_whole_shards(chain: Chain) -> None:
    folder = chain.root / "data" / "two_rooms_33"
    assert verify(folder / "train").episodes == 30
    assert verify(folder / "val").episodes == 12


def test_pretrain_leaves_a_stage_that_can_be_rebuilt(chain: Chain) -> None:
    stage = checkpoint.load_stage(chain.checkpoint)
    assert not stage.training
    assert stage.jepa.state_size == 324
    cost = checkpoint.training_cost(checkpoint.read(chain.checkpoint))
    assert cost["train_frames"] == FRAMES
    assert cost["train_transitions"] == Manifest.load(chain.root / "data" / "two_rooms_33" / "train").transitions


def test_critic_and_policy_build_on_what_was_trained(chain: Chain) -> None:
    """The intrinsic cost measures in the metric that pretraining left; the critic was trained for this one."""
    pretrained, distilled = checkpoint.load_stage(chain.checkpoint), checkpoint.load_stage(chain.distilled)
    s = torch.randn(5, 324)
    with torch.no_grad():
        frozen = distilled.previous.intrinsic.terms["goal"].metric(s)
        torch.testing.assert_close(frozen, pretrained.metric(s))
        torch.testing.assert_close(frozen, distilled.metric(s))
    signature = bytes(distilled.previous.critic.signature.tolist()).hex()
    assert signature == distilled.intrinsic.fingerprint
    assert not list((chain.root / "first").glob("graphs*"))


def test_evaluate_leaves_numbers(chain: Chain) -> None:
    assert chain.written == chain.root / "results" / "two_rooms_tiny.json"
    found = chain.results()
    assert (found.experiment, found.seeds) == ("two_rooms_tiny", [0])
    exam = json.loads(chain.written.read_text())
    keys = {
        "mode2_success",
        "mode2_success_ever",
        "ms_per_decision",
        "probe_agent_r2",
        "probe_wall_r2",
        "rollout_error_px_16",
        "wall_leak_rate",
        "door_pass_rate",
        "cost_rank_correlation",
    }
    assert keys <= exam["metrics"].keys()
    assert {"random", "straight", "drunkard", "true_dynamics_raw_distance", "expert"} <= exam["floors"].keys()
    assert found.metrics["mode2_success"].n == 4
    keys = {"mode1_success", "mode1_speedup", "warm_start_success_quarter", "behaviour_cloning_success"}
    assert keys <= exam["metrics"].keys()
    assert {"planners", "modes", "diagnosis"} <= exam["tables"].keys()
    assert exam["tables"]["modes"]["mode1"]["evaluations"]["value"] == 0
    assert exam["controls"]["warm_start_success_quarter"].keys() == {"cold_start", "untrained_policy"}
    assert found.cost["train_frames"] == FRAMES
    assert min(found.cost[f"{stage}_seconds"] for stage in ("train", "critic", "distill")) > 0
    assert summary(found).endswith("note: a test")
    assert "open-loop position error at 16 steps, px" in main_tables(found)


def test_evaluate_leaves_pictures(chain: Chain) -> None:
    folder = chain.root / "first" / "evaluate_seed_0" / "figures"
    assert {"success.png", "rollouts.png", "plans.png", "landscape.png", "episodes.gif"} <= set(os.listdir(folder))
    for path in folder.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 50


def test_the_store_shows_a_parent_with_a_child_for_each_stage(chain: Chain) -> None:
    client = MlflowClient(f"sqlite:///{chain.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("two_rooms_tiny").experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {run.info.run_name: run for run in runs if run is not parent}
    distilled = {f"distill_seed_0_round_{number}" for number in (0, 1)}
    others = {f"{stage}_seed_0" for stage in ("collect", "pretrain", "critic", "evaluate")}
    assert set(children) == distilled | others
    assert "val/rank_correlation" in children["critic_seed_0"].data.metrics
    assert "val/perceived" in children["distill_seed_0_round_1"].data.metrics
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert "exam/mode2_success" in parent.data.metrics
    pretrain = children["pretrain_seed_0"]
    terms = ("prediction", "variance", "covariance", "inverse_dynamics", "contrast", "loss")
    assert {f"train/{name}" for name in terms} <= pretrain.data.metrics.keys()
    assert {"monitor/effective_rank", "probe/agent_x_r2", "val/prediction"} <= pretrain.data.metrics.keys()
    names = {f"two_rooms_33/{split}" for split in ("train", "val")}
    assert {Path(item.dataset.name).name for item in pretrain.inputs.dataset_inputs} <= names | {"train", "val"}
    figures = client.list_artifacts(children["evaluate_seed_0"].info.run_id, "exam/figures")
    assert "exam/figures/plans.png" in {file.path for file in figures}


def test_the_same_seed_gives_the_same_numbers(chain: Chain) -> None:
    """The chain once more: shards stay as they are; weights and exam come out the same."""
    shards = {path: path.stat().st_mtime_ns for path in (chain.root / "data").rglob("*") if path.is_file()}
    first = chain.results()
    written = pipeline.pipeline(chain.configuration("again", "tracking=none"))
    assert written is not None
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    for left in (chain.checkpoint, chain.distilled):
        again = chain.root / "again" / left.relative_to(chain.root / "first")
        weights, others = (checkpoint.read(path)["state_dict"] for path in (left, again))
        assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert without_times(results.load(written)) == without_times(first)


def test_evaluate_alone_takes_a_checkpoint(chain: Chain) -> None:
    """The exam of pretraining alone: the world model is the same, plans go by the energy of the goal, no Mode-1."""
    overrides = ("stages=[evaluate]", f"checkpoint={chain.checkpoint}", "tracking=none", "name=alone")
    written = pipeline.pipeline(chain.configuration("alone", *overrides, "evaluation.diagnosis_episodes=0"))
    assert written == chain.root / "results" / "alone.json"
    found, first = results.load(written), chain.results()
    for key in ("probe_agent_r2", "rollout_error_px_16", "wall_leak_rate"):
        assert found.metrics[key] == first.metrics[key]
    assert "mode2_success" in found.metrics
    assert "mode1_success" not in found.metrics
    assert set(found.tables) == {"planners"}
    assert not (chain.root / "alone" / "pretrain_seed_0").exists()


def test_the_pipeline_goes_on_from_where_a_folder_is(chain: Chain, tmp_path: Path) -> None:
    """Later stages find what those before them left; nothing is found of a stage that was left out."""
    shutil.copytree(chain.root / "first" / "pretrain_seed_0", tmp_path / "pretrain_seed_0")
    settings = ("tracking=none", f"paths.out={tmp_path}")
    assert pipeline.pipeline(chain.configuration("first", *settings, "stages=[critic]")) is None
    weights, others = (
        checkpoint.read(folder / "critic_seed_0" / checkpoint.LAST)["state_dict"]
        for folder in (tmp_path, chain.root / "first")
    )
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    shutil.rmtree(tmp_path / "critic_seed_0")
    with pytest.raises(ValueError, match=r"no checkpoint .*critic_seed_0.* for distill to build on"):
        pipeline.pipeline(chain.configuration("first", *settings, "stages=[pretrain,distill]"))
    cfg = chain.configuration("first", *settings, "stages=[critic]")
    cfg.critic = None
    with pytest.raises(ValueError, match=r"nothing says how: choose critic="):
        pipeline.pipeline(cfg)


def test_a_critic_of_pain_from_a_world_to_its_results(tmp_path: Path) -> None:
    """The experiment `hazards` at its smallest: what is felt goes through shards, world model, critic and exam."""
    written = pipeline.pipeline(configuration(tmp_path, "run", "tracking=none", experiment="hazards_tiny"))
    assert written == tmp_path / "results" / "hazards_tiny.json"
    found = results.load(written)
    keys = {"critic_rank_correlation", "short_horizon_with_critic", "short_horizon_without", "long_horizon"}
    assert keys | {"evaluations_ratio", "one_shot_rise", "one_shot_elsewhere", "dose_response"} <= found.metrics.keys()
    assert found.metrics["evaluations_ratio"].value <= 0.2
    stage = checkpoint.load_stage(tmp_path / "run" / "critic_seed_0" / checkpoint.LAST)
    assert stage.intrinsic.names == ("goal", "pain")
    manifest = Manifest.load(tmp_path / "data" / "hazards_33" / "train")
    assert (manifest.body_names, manifest.energy_names) == (("energy_level", "pain"), ("pain",))


def test_levels_stack_by_configuration_alone(tmp_path: Path) -> None:
    """The experiment `maze` at its smallest, with a third level; then another level 3 on the level 2 that is there."""
    tiny = {"experiment": "maze_tiny"}
    written = pipeline.pipeline(configuration(tmp_path, "run", "tracking=none", **tiny))
    assert written is not None
    found = results.load(written)
    keys = {"hierarchical_success_5_7", "hierarchical_success_8_12", "flat_success_5_7", "flat_success_8_12"}
    keys |= {"evaluations_ratio", "distractor_probe_s1", "distractor_probe_s2", "room_probe_s2", "room_probe_s3"}
    assert keys | {f"level{level}_error_{ahead}" for level in (1, 2, 3) for ahead in (8, 16)} <= found.metrics.keys()
    rows = {"hierarchical", "hierarchical_cem", "hierarchical_graph", "hierarchical_reactive", "hierarchical_three"}
    rows |= {"critic_alone", "oracle_subgoals"}
    assert rows <= found.tables["5_7"].keys()
    stage = checkpoint.load_stage(tmp_path / "run" / "level3_seed_0" / checkpoint.LAST)
    assert isinstance(stage.jepa, HierarchicalJEPA)
    assert (stage.jepa.depth, stage.jepa.stride(3)) == (3, 8)
    below = checkpoint.load_stage(tmp_path / "run" / "level2_seed_0" / checkpoint.LAST).state_dict()
    kept = stage.previous.state_dict()
    assert all(torch.equal(kept[name], below[name]) for name in below)
    cfg = configuration(tmp_path, "run", "tracking=none", "stages=[level3]", "seed=1", **tiny)
    pipeline.pipeline(cfg)
    cfg = configuration(tmp_path, "other", "tracking=none", "train=level3", **tiny)
    cfg.init_from = str(tmp_path / "run" / "pretrain_seed_0" / checkpoint.LAST)
    with pytest.raises(ValueError, match="builds on a checkpoint of train=level2: this one is of train=pretrain"):
        train.train(cfg)


def test_windows_too_long_for_a_level_are_found_before_the_levels_below_train(tmp_path: Path) -> None:
    cfg = configuration(tmp_path, "run", "tracking=none", experiment="maze_tiny")
    cfg.level3.data.levels = [{"length": 7, "stride": 8}]
    said = r"the data of level3: a window .* spans 48 steps, but .* has only 40\. .* episodes of at least 48 steps"
    with pytest.raises(ValueError, match=said):
        pipeline.pipeline(cfg)
    assert not (tmp_path / "run" / "pretrain_seed_0").exists()


def test_a_critic_of_level_2_by_configuration_alone(tmp_path: Path) -> None:
    """Trained on the states of level 2, and asked by the planner of that level."""
    tiny = {"experiment": "maze_programme_tiny"}
    written = pipeline.pipeline(configuration(tmp_path, "run", "tracking=none", **tiny))
    assert written is not None
    assert "critic_seconds" in results.load(written).cost
    stage = checkpoint.load_stage(tmp_path / "run" / "critic_seed_0" / checkpoint.LAST)
    assert stage.critic.members[0].features.state_size == stage.jepa.level(2).jepa.state_size == 972
    given = ("tracking=none", "planner.judged=null", "resume=auto", "stages=[evaluate]")
    again = configuration(tmp_path, "run", *given, **tiny)
    with pytest.raises(ValueError, match=r"has a critic, and the planner does not ask it: set planner\.judged"):
        pipeline.pipeline(again)


def command(*words: str, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tiny experiment by `python -m words[0] ...`, below `root`."""
    overrides = [f"hydra.searchpath=[file://{TEST_CONF}]", "experiment=two_rooms_tiny", "trainer.log_every_n_steps=1"]
    settings = {**os.environ, "JEPA_ROOT": str(root), "COLUMNS": "80", **environment}
    line = [sys.executable, "-m", *words, *overrides]
    return subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, env=settings, check=True)


def test_the_console_says_what_is_being_done_and_no_more(own_root: Path, store: str) -> None:
    answer = command("lightning_jepa.pipeline", "stages=[collect,pretrain]", root=own_root)
    expected = (
        "collect: ",
        "packing two_rooms_33/",
        "pretrain: ",
        "JEPAPretraining: ",
        "results: none",
        "curves and figures",
    )
    lines = answer.stdout.splitlines()
    assert [line for line in lines if not line.startswith(expected)] == []
    assert any(line.endswith(f"weights on cpu in {half('cpu')}") for line in lines)
    assert answer.stderr == ""
    log = next(own_root.glob("runs/two_rooms_tiny/*/pipeline.log")).read_text()
    assert "`Trainer.fit` stopped: `max_epochs=2` reached." in log  # for those who look for it


@pytest.mark.distributed
def test_two_processes_train_as_one_run(chain: Chain, own_root: Path) -> None:
    shutil.copytree(chain.root / "data", own_root / "data")
    start = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")  # a port that is free
    launch = (*start, "-m", "lightning_jepa.train", "tracking=none")
    answer = command(*launch, *DDP, root=own_root)
    (run,) = own_root.glob("runs/two_rooms_tiny/*")
    assert checkpoint.training_cost(checkpoint.read(run / checkpoint.LAST))["train_frames"] == 2 * FRAMES
    assert answer.stdout.count("trained 30 steps") == 1
    answer = command(*launch, "train=critic", f"init_from={chain.checkpoint}", *DDP, root=own_root)
    assert answer.stdout.count("trained 6 steps") == 1
