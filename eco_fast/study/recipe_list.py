"""`eco-fast recipes`: the shipped recipes, with the rows of the paper that they stand for."""

from eco_fast import config
from eco_fast.config import OwnModel, Score
from eco_fast.config.paper import SETS
from eco_fast.config.recipe_files import recipe_names
from eco_fast.utils.table_io import Table


def show_recipes() -> None:
    """Print one table: every recipe, what it trains, and the paper's scores."""
    columns = ("recipe", "network", "objective", "optimizer", "steps x batch", "row of the paper", *SETS)
    rows = []
    for name in recipe_names():
        recipe = config.load(name)
        model, optimizer, train, paper = recipe.model, recipe.optimizer, recipe.train, recipe.paper
        assert not isinstance(model, OwnModel), "shipped recipes have shipped networks"
        cells = [
            name,
            f"{model.name}-{model.features} x{recipe.scale}",
            f"{recipe.objective.name}, {recipe.objective.loss}",
            f"{optimizer.name}, {optimizer.learning_rate:.1e}",
            f"{train.steps:,} x {train.batch_size}",
            paper.row,
        ]
        rows.append([*cells, *(_psnr(getattr(paper, key)) for key in SETS.values())])
    Table("The shipped recipes, and the paper's PSNR-Y in dB", columns, rows).show()


def _psnr(score: Score | None) -> str:
    return f"{score[0]:.2f}" if score else ""
