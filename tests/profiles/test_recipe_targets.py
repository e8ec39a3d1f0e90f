"""Recipes say for which hardware they are, and what does not suit it is refused."""

from pathlib import Path

import pytest

from damoserve_profiles.recipe import Recipe, RecipeError, read_recipe


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "made.yaml"
    path.write_text(text)
    return path


def test_a_recipe_is_for_processors_unless_it_says_otherwise(tmp_path: Path) -> None:
    assert read_recipe(recipe_file(tmp_path, "export: {candidates: 9}")).target == "cpu"


@pytest.mark.parametrize(
    "text",
    [
        "target: gpu",
        "{target: gpu, quantise: {calibration_images: 5, ranges: mse}}",
        "target: npu",
        "{target: npu, export: {tail: all, silu: hardswish, upsample: transposed_convolution, opset: 18}}",
        "{target: npu, quantise: {calibration_images: 5, ranges: percentile, percentile: 99.9, equalise: true}}",
    ],
)
def test_what_suits_the_target_is_read_and_can_stand_in_a_manifest(tmp_path: Path, text: str) -> None:
    recipe = read_recipe(recipe_file(tmp_path, text))
    assert recipe.target in text
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("target: tpu", "target"),
        ("export: {tail: host}", "for the target npu, not cpu"),
        ("export: {silu: relu}", "for the target npu, not cpu"),
        ("{target: gpu, export: {upsample: transposed_convolution}}", "for the target npu, not gpu"),
        ("{target: npu, export: {tail: best}}", "tail best, which sorts"),
        ("{target: npu, export: {stem: space_to_depth}}", "space_to_depth, which splits"),
        ("{target: gpu, precision: bf16}", "precision is for the target cpu"),
        ("{target: gpu, export: {opset: 18}, quantise: {calibration_images: 5}}", "opset 19"),
        ("{target: npu, quantise: {calibration_images: 5, reduce_range: false}}", "quantise.reduce_range"),
        ("{target: gpu, quantise: {calibration_images: 5, budget: 0.01}}", "quantise.budget"),
    ],
)
def test_what_does_not_suit_the_target_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        read_recipe(recipe_file(tmp_path, text))
