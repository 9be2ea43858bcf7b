"""Parameters: coercion, ranges, did-you-mean, and params files that agree with the registry."""

import pytest
import yaml

from fgtune.core.project import project_root
from fgtune_helpers.params import PARAMETERS, SERIES, VARIANTS, ParameterError, coerce
from fgtune_helpers.runner import choose, load_params
from fgtune_helpers.stage import ALL, STAGES


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("iters", "300", 300),
        ("iters", 3.0, 3),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", 1, 1.0),
        ("variants", "q4, int8", ["q4", "int8"]),
        ("run_dir", "runs/x", "runs/x"),
    ],
)
def test_coerces_what_papermill_and_yaml_hand_over(name, given, wanted):
    value = coerce(name, given)
    assert value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("itres", 3, "did you mean 'iters'"),
        ("lr", 1e-4, "unknown parameter 'lr'; did you mean 'learning_rate'?"),
        ("bs", 8, "did you mean 'batch_size'?"),
        ("batch", 8, "did you mean 'batch_size'?"),
        ("steps", 300, "did you mean 'iters'?"),
        ("r", 16, "did you mean 'rank'?"),
        ("iters", "many", "whole number"),
        ("iters", 2.5, "whole number"),
        ("iters", True, "whole number"),
        ("iters", -1, "outside 0 to"),
        ("learning_rate", "nan", "outside"),
        ("fine_tune_type", "lorra", "did you mean 'lora'"),
        ("variants", ["q5"], "unknown variant 'q5'"),
        ("variants", [["q4"]], "unknown variant"),
        ("deploy_variant", "Q4", "unknown variant 'Q4', not one of fp32, fp16"),
        ("seed", "inf", "whole number"),
        ("scale", True, "must be a number"),
        ("num_layers", -2, "outside"),
        ("run_dir", 5, "must be text"),
    ],
)
def test_refuses_in_one_line(name, given, message):
    with pytest.raises(ParameterError) as error:
        coerce(name, given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_abbreviation_stands_for_a_parameter():
    assert SERIES["abbreviations"] and set(SERIES["abbreviations"].values()) <= set(PARAMETERS)
    assert not set(SERIES["abbreviations"]) & set(PARAMETERS)


def test_defaults_are_valid_themselves():
    for name, param in PARAMETERS.items():
        assert coerce(name, param.default) == param.default


def test_the_help_of_variants_names_them_all():
    assert PARAMETERS["variants"].help.endswith(": " + ", ".join(VARIANTS[1:])) and VARIANTS[0] == "fp32"


def test_every_parameter_is_used_by_a_stage_and_known():
    used = {name for stage in ALL.values() for name in stage.all_params}
    assert used == set(PARAMETERS)


@pytest.mark.parametrize("file", sorted(p.name for p in (project_root() / "params").glob("*.yaml")))
def test_params_files_load(file):
    values = load_params([f"params/{file}"], [])
    given = yaml.safe_load((project_root() / "params" / file).read_text())
    assert {name: values[name] for name in given} == {name: coerce(name, v) for name, v in given.items()}


def test_quickstart_is_the_default():
    values = load_params(["params/quickstart.yaml"], [])
    assert values == {name: param.default for name, param in PARAMETERS.items()}


def test_a_params_file_names_itself_in_its_errors(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("iterz: 5\n")
    with pytest.raises(ParameterError, match=r"mine\.yaml: unknown parameter 'iterz'; did you mean 'iters'"):
        load_params([str(file)], [])


def test_variants_that_are_not_made_cannot_be_deployed():
    with pytest.raises(ParameterError, match="'q4s' is to be tested or deployed"):
        load_params([], [("deploy_variant", "q4s"), ("variants", "q4")])


def test_choosing_stages():
    assert choose("02", "train", [], []) == ["02_train"]
    assert choose(None, None, ["11_report", "00"], []) == ["00_setup", "11_report"]
    assert "09_test_node" not in choose("08", None, [], ["09"])
    assert choose(None, None, ["01"], []) == ["01_data"] and choose(None, None, ["01b"], []) == ["01b_generate"]
    assert choose(None, None, ["generate"], []) == ["01b_generate"]
    assert choose(None, None, [], []) == list(STAGES) and choose("00", "02", [], [])[1:] == ["01_data", "02_train"]
    with pytest.raises(ParameterError, match="comes after"):
        choose("05", "02", [], [])
    with pytest.raises(ParameterError, match="no stage 'trian'"):
        choose("trian", None, [], [])
