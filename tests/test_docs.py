"""The documentation: the tutorial runs, every option of the published code is mapped, every page is in the site."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from abd_jax import synthesis
from abd_jax.training.config import Preset
from experiments import console, presets
from experiments.__main__ import COMMANDS

TOP = Path(__file__).parents[1]
DOCS = TOP / "docs"
RELEASED = {  # the parsers of github.com/illidanlab/ABD at commit 1210471
    "zskt/main.py": "dataset total_n_pseudo_batches log_times n_generator_iter n_student_iter batch_size z_dim "
    "student_learning_rate generator_learning_rate teacher_architecture student_architecture KL_temperature AT_beta "
    "pretrained_models_path sel_model save_final_model save_n_checkpoints save_model_path seed workers resume no_log "
    "trigger_pattern poi_target sup_backdoor use_hg hg_start_round inner_round hg_out_portion sup_resume sup_resume_lr "
    "sup_pert_model pert_lr shuf_teacher n_shuf_ens n_shuf_layer neg_drop_loss no_shuf_grad pseudo_test_batches",
    "cmi/datafree_kd.py": "method adv bn oh act balance save_dir cr cr_T cmi_init data_root teacher student dataset lr "
    "lr_decay_milestones lr_g T epochs g_steps kd_steps ep_steps resume evaluate_only batch_size synthesis_batch_size "
    "gpu world_size rank dist_url dist_backend multiprocessing_distributed fp16 seed save_n_last_epoch log_tag workers "
    "start_epoch momentum wd print_freq pretrained trigger poi_target pt_path shufl_coef pseudo_test_batches unlearn "
    "inner_round unlearn_resume ul_resume_lr",
    "cmi/vanilla_kd_ood.py": "seed dataset teacher pt_path student initialize_student start_epoch epochs lr opt "
    "scheduler batch_size percent no_log visualize save_n_last_epoch resume temp beta cutmix_prob trigger poi_target "
    "shufl_coef pseudo_test_batches unlearn inner_round unlearn_resume ul_resume_lr",
    "zskt/kd_distill.py": "seed dataset teacher teacher_path student epochs lr batch_size percent no_log alpha temp "
    "trigger_pattern poi_target sel_model",
}
QUICK = {  # what keeps a command of the tutorial short
    "teacher": "--teacher.epochs 1",
    "audit": "--batches 1 --batch 8 --inversion.steps 1 --inversion.images 4 --vaccine.trials 1",
    "distill": "--student.cycles 2 --student.updates 1 --student.batch 8 --student.evaluate-every 2 "
    "--student.checkpoint-every 2 --synthesis.features 4 --inversion.steps 1 --inversion.images 4",
    "export": "",
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def options_of(config: object, prefix: str = "") -> set[str]:
    found = set()
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name.replace('_', '-')}", getattr(config, field.name)
        found |= options_of(value, f"{name}.") if dataclasses.is_dataclass(value) else {f"--{name}"}
    return found


def test_every_option_of_the_release_is_mapped_to_one_that_exists():
    page = (DOCS / "from-pytorch.md").read_text()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    known = {"--teacher", "--arch", "--out", "--seed", "--devices", "--resume", "--defense"}
    for method in synthesis.METHODS:
        known |= options_of(Preset(name="x", dataset="digits").with_method(method))
    for program, names in RELEASED.items():
        (section,) = (section for section in sections if program in section.split("\n")[0])
        rows = re.findall(r"^\| `--(\w+)` \| (.*?) \| (.*?) \|$", section, re.MULTILINE)
        assert [name for name, _, _ in rows] == names.split()
        for name, ours, why in rows:
            assert ours != "–" or why or name == "no_log", name
            for option in re.findall(r"--[\w.-]+", f"{ours} {why}"):
                assert option in known, (name, option)


def test_every_page_is_in_the_site_and_every_module_it_names_exists():
    import importlib

    site = (TOP / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in site, page
        for module in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            importlib.import_module(module)


def test_the_tutorial_s_commands_are_commands():
    lines = [line for block in blocks("tutorial.md", "sh") for line in block.splitlines()]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "experiments"] and words[3] in QUICK and words[3] in COMMANDS
        if words[3] in ("teacher", "distill"):
            assert words[4] in presets.presets()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.optax
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for block in blocks("tutorial.md", "sh"):
        for line in block.splitlines():
            words = shlex.split(line)[3:]
            assert console.run(COMMANDS, words + shlex.split(QUICK[words[0]])) == 0, capsys.readouterr().err
    python = "".join(blocks("tutorial.md", "python"))
    assert python.count("cycles=400") == python.count("abd.audit(teacher, student)") == 1
    quick = "settings=abd.AuditConfig(batches=1, batch=8)"
    python = python.replace("cycles=400", "cycles=1").replace("(teacher, student)", f"(teacher, student, {quick})")
    exec(compile(python, "tutorial.md", "exec"), {})
    assert "calibrated signs speak for a backdoor" in capsys.readouterr().out
    for name in ("audit/report.html", "audit-student/report.html", "student.safetensors.md", "unsure.safetensors"):
        assert (Path("runs") / name).is_file(), name
