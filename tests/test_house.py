"""The rules of the house, read off the source: who may import whom, and how large a part may be."""

import ast
import re
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [  # from the ground up; a room imports from lower floors only
    {"system"},
    {"functional", "world", "tokenizer"},
    {"models"},
    {"artifacts", "generation", "data", "loggers"},
    {"rewards", "training"},
    {"stages", "callbacks", "evaluation", "prompting", "planning"},
    {"comparing", "serving"},
    {"launch"},
    {"tasks"},
    {"cli", "train"},
]
SEES_CONFIGS = {"launch", "tasks", "cli", "train"}
SEES_LIGHTNING = SEES_CONFIGS | {"data", "loggers", "training", *FLOORS[5], *FLOORS[6]}
# tests in the folders of components/ that mirror no module, by the reason
ACROSS = {
    "what holds for every stage": """stages/test_accumulation stages/test_averaged_weights stages/test_best_export
        stages/test_changes_outside_steps stages/test_charts stages/test_chosen_weights stages/test_every_optimizer
        stages/test_fast_path stages/test_frozen stages/test_grad_norm stages/test_learning stages/test_longer_runs
        stages/test_lora_stages stages/test_loss_traces stages/test_optimum stages/test_packed_losses
        stages/test_padded_stages stages/test_resume stages/test_resume_processes stages/test_scaled_losses
        stages/test_two_processes stages/test_uneven_data""",
    "what holds for every function of a folder": """functional/test_masked_places functional/test_tabular_oracle
        evaluation/measure/test_not_numbers""",
    "models, tokenizers and data sets made elsewhere": """artifacts/test_foreign_models data/test_named_sets
        tokenizer/test_foreign_callers tokenizer/test_foreign_chat tokenizer/test_foreign_folder
        tokenizer/test_foreign_text tokenizer/test_padded_vocabulary tokenizer/test_thinking""",
}
FILES = sorted([*ROOT.glob("components/**/*.py"), ROOT / "train.py"])
MODULES = [file for file in FILES if file.name != "__init__.py"]


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def part_of(file: Path) -> str:
    """The first name below components/: a folder or a file's stem."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "components" else parts[0]


def imports_of(file: Path) -> set[str]:
    """Dotted names of all that a file imports, inside functions too; `from a import b` gives a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor_of(part: str) -> int:
    floors = [number for number, parts in enumerate(FLOORS) if part in parts]
    assert floors, f"components/{part} is on no floor of this list"
    return floors[0]


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_part_imports_from_lower_floors_only(file):
    part = part_of(file)
    ours = [name.split(".") for name in imports_of(file) if name.split(".")[0] in ("components", "train")]
    used = {name[1] if name[0] == "components" else "train" for name in ours}
    for other in used - {part}:
        assert floor_of(other) < floor_of(part), f"{name_of(file)} imports {other}"


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_only_the_upper_floors_see_hydra_and_lightning(file):
    tops = {name.split(".")[0] for name in imports_of(file)}
    if part_of(file) not in SEES_CONFIGS:
        assert not tops & {"hydra", "omegaconf"}
    if part_of(file) not in SEES_LIGHTNING:
        assert not tops & {"lightning", "pytorch_lightning"}
    if part_of(file) in {"tokenizer", "world"}:
        assert "torch" not in tops


@pytest.mark.parametrize("file", [f for f in FILES if f.name == "__init__.py"], ids=name_of)
def test_package_files_are_empty(file):
    assert file.read_text() == ""


def test_no_two_files_of_components_have_one_name():
    counts = Counter(file.stem for file in MODULES if file != ROOT / "train.py")
    assert not [name for name, count in counts.items() if count > 1]


def test_every_test_mirrors_a_module_or_has_a_reason_not_to():
    """tests/x/test_y.py and tests/x/test_y_z.py test components/x/y.py."""
    loose = set()
    for file in ROOT.glob("tests/*/**/test_*.py"):
        name = file.relative_to(ROOT / "tests").with_suffix("")
        folder, subject = ROOT / "components" / name.parent, name.name.removeprefix("test_")
        modules = [module.stem for module in folder.glob("*.py")]
        if folder.is_dir() and not any(f"{subject}_".startswith(f"{module}_") for module in modules):
            loose.add(str(name))
    assert loose == {name for names in ACROSS.values() for name in names.split()}


def test_a_test_imports_from_the_kit_and_no_other_test():
    for file in ROOT.glob("tests/**/*.py"):
        others = {name for name in imports_of(file) if re.match(r"tests\.(.*\.)?(test_|conftest)", name)}
        assert not others, f"{name_of(file)} imports {others}; move what they share to tests/kit"


def test_no_module_imports_itself_by_way_of_others():
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in MODULES}
    graph = {}
    for file in MODULES:
        names = imports_of(file)
        graph[".".join(file.relative_to(ROOT).with_suffix("").parts)] = {
            module for name in names for module in (name, name.rpartition(".")[0]) if module in modules
        }
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_components_holds_folders_and_the_command_alone():
    assert {file.name for file in (ROOT / "components").glob("*.py")} == {"__init__.py", "cli.py"}


def test_every_folder_of_components_is_a_room_on_a_floor():
    rooms = {file.parent.relative_to(ROOT / "components").parts[0] for file in ROOT.glob("components/*/**/*.py")}
    assert rooms <= set().union(*FLOORS)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_file_has_at_most_400_lines_and_a_function_60(file):
    text = file.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def stage_configs() -> dict[str, dict]:
    return {file.stem: yaml.safe_load(file.read_text()) for file in sorted(ROOT.glob("conf/stage/*.yaml"))}


TRAINED = [name for name, config in stage_configs().items() if config["task"] == "components.tasks.fit.fit"]


@pytest.mark.parametrize("stage", TRAINED)
def test_a_trained_stage_is_one_yaml_and_the_module_of_the_same_name(stage):
    target = stage_configs()[stage]["stage"]["_target_"]
    assert target.rpartition(".")[0] == f"components.stages.{stage}"
    assert (ROOT / f"components/stages/{stage}.py").is_file()


def data_targets() -> dict[str, str]:
    """Module of the data module that a format's YAML builds; a data set that inherits a format names none."""
    configs = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(ROOT.glob("conf/data/*.yaml"))}
    return {name: c["_target_"].rpartition(".")[0] for name, c in configs.items() if "_target_" in c}


def test_every_record_format_is_one_yaml_and_the_module_of_the_same_name():
    targets = data_targets()
    assert set(targets) == {"text", "chat", "preference", "unpaired", "prompts"}
    assert targets == {name: f"components.data.{name}" for name in targets}


def test_a_data_set_inherits_a_format():
    for file in ROOT.glob("conf/data/*.yaml"):
        config = yaml.safe_load(file.read_text())
        assert "_target_" in config or config["defaults"], f"{name_of(file)} builds nothing and inherits nothing"


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_every_public_function_and_class_has_a_docstring(file):
    if file.name in ("cli.py", "train.py"):  # docstrings of commands are their help
        return
    public = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    named = [node for node in ast.parse(file.read_text()).body if isinstance(node, public) and node.name[0] != "_"]
    assert [node.name for node in named if ast.get_docstring(node) is None] == []
