"""What all dashboards are put together from: panels that look alike, variables, links."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_looks
from grafana_foundation_sdk.models import prometheus as queries

Panel = timeseries.Panel | stat.Panel | heatmap.Panel | statetimeline.Panel | table.Panel | bargauge.Panel
Query = prometheus.Dataquery

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24
TAG = "damoserve"
GREEN, ORANGE, RED, GREY = "green", "orange", "red", "gray"


@dataclass(frozen=True)
class Row:
    """Panels side by side, all as wide and `height` grid units high; without a title they have no head."""

    title: str
    panels: Sequence[Panel]
    height: int = 8


@dataclass(frozen=True)
class Board:
    """One dashboard. `variables` are names in VARIABLES, in the order in which they are shown."""

    name: str
    title: str
    description: str
    variables: Sequence[str]
    rows: Sequence[Row]


VARIABLES = {
    "instance": ("Instance", "label_values(damoserve_workers, instance)"),
    "model": ("Model", 'label_values(damoserve_profile_state{instance=~"$instance"}, model)'),
    "profile": ("Profile", 'label_values(damoserve_profile_state{instance=~"$instance", model=~"$model"}, profile)'),
    "tier": ("Tier", 'label_values(damoserve_requests_in_flight{instance=~"$instance"}, tier)'),
}


def query(expression: str, legend: str = "") -> Query:
    return prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").range()


def now(expression: str, legend: str = "") -> Query:
    """The value at the end of the shown time only."""
    return prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").instant()


def graph(title: str, description: str, unit: str, *asked: Query) -> timeseries.Panel:
    """Lines over time."""
    panel = timeseries.Panel().title(title).description(description).unit(unit).datasource(SOURCE)
    legend = common.VizLegendOptions().display_mode(looks.LegendDisplayMode.TABLE).calcs(["mean", "max", "lastNotNull"])
    tooltip = common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING)
    return (
        panel.targets(_named(asked))
        .legend(legend.placement(looks.LegendPlacement.BOTTOM).show_legend(True))
        .tooltip(tooltip)
        .line_width(1)
        .fill_opacity(8)
        .show_points(looks.VisibilityMode.NEVER)
        .min(0)
    )


def stacked(title: str, description: str, unit: str, *asked: Query) -> timeseries.Panel:
    """Areas that add up to the whole."""
    stacking = common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A")
    return graph(title, description, unit, *asked).fill_opacity(60).stacking(stacking)


def shares(title: str, description: str, *asked: Query) -> timeseries.Panel:
    """Areas as parts of one whole."""
    stacking = common.StackingConfig().mode(looks.StackingMode.PERCENT).group("A")
    return graph(title, description, "percentunit", *asked).fill_opacity(60).stacking(stacking).max(1)


def figure(title: str, description: str, unit: str, *asked: Query) -> stat.Panel:
    """One number with its course behind it."""
    panel = stat.Panel().title(title).description(description).unit(unit).datasource(SOURCE).targets(_named(asked))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.graph_mode(looks.BigValueGraphMode.AREA).color_mode(looks.BigValueColorMode.VALUE)


def heat(title: str, description: str, unit: str, asked: Query) -> heatmap.Panel:
    """The buckets of a histogram over time; `asked` is by `le`."""
    mode, scale = heatmap_looks.HeatmapColorMode.SCHEME, heatmap_looks.HeatmapColorScale.EXPONENTIAL
    colour = heatmap.HeatmapColorOptions().mode(mode).scale(scale).scheme("Oranges").exponent(0.5).steps(64)
    panel = heatmap.Panel().title(title).description(description).datasource(SOURCE)
    asked.format(queries.PromQueryFormat.HEATMAP).legend_format("{{le}}")
    return panel.targets(_named([asked])).calculate(False).color(colour).y_axis(heatmap.YAxisConfig().unit(unit))


def bars(title: str, description: str, unit: str, *asked: Query) -> bargauge.Panel:
    """A bar for each series, as it is now."""
    panel = bargauge.Panel().title(title).description(description).unit(unit).datasource(SOURCE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.targets(_named(asked)).orientation(looks.VizOrientation.HORIZONTAL).min(0)


def states(title: str, description: str, names: Sequence[tuple[str, str]], *asked: Query) -> statetimeline.Panel:
    """What was so from when to when; `names` has a text and a colour for each of the values 0, 1 ..."""
    texts = {str(value): models.ValueMappingResult(text, colour) for value, (text, colour) in enumerate(names)}
    colours = [(float(value), colour) for value, (_, colour) in enumerate(names)]
    panel = statetimeline.Panel().title(title).description(description).datasource(SOURCE).targets(_named(asked))
    panel.mappings([models.ValueMap(texts)]).thresholds(levels(colours[0][1], *colours[1:]))
    panel.color_scheme(grafana.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    return panel.show_value(looks.VisibilityMode.AUTO).row_height(0.8)


def labels(title: str, description: str, asked: Query) -> table.Panel:
    """The labels of series whose value says nothing, as a table."""
    asked.format(queries.PromQueryFormat.TABLE)
    excluded = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
    arranged = models.DataTransformerConfig(id_val="organize", options={"excludeByName": excluded})
    panel = table.Panel().title(title).description(description).datasource(SOURCE)
    return panel.targets(_named([asked])).with_transformation(arranged)


def levels(first: str, *steps: tuple[float, str]) -> grafana.ThresholdsConfig:
    """Colours: `first` below all steps, then that of the last step that is reached."""
    all_steps = [models.Threshold(value=None, color=first), *(models.Threshold(value, color) for value, color in steps)]
    return grafana.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(all_steps)


def lined(panel: timeseries.Panel, *steps: tuple[float, str]) -> timeseries.Panel:
    """Draws the steps as dashed lines, too."""
    dashed = common.GraphThresholdsStyleConfig().mode(looks.GraphThresholdsStyleMode.DASHED)
    return panel.thresholds(levels("transparent", *steps)).thresholds_style(dashed)


def dashed(panel: timeseries.Panel, pattern: str) -> timeseries.Panel:
    """Draws the series whose legends match as dashed lines without an area: what is wanted, beside what is."""
    style = {"fill": "dash", "dash": [8, 6]}
    alone = {"mode": "none"}  # not on top of what is stacked
    looks_like = {"custom.lineStyle": style, "custom.fillOpacity": 0, "custom.lineWidth": 2, "custom.stacking": alone}
    return panel.override_by_regexp(
        f"/{pattern}/", [models.DynamicConfigValue(name, value) for name, value in looks_like.items()]
    )


def build(board: Board) -> models.Dashboard:
    """Raises KeyError for an unknown variable."""
    made = grafana.Dashboard(board.title).uid(f"{TAG}-{board.name}").description(board.description).tags([TAG])
    made.readonly().refresh("10s").time("now-30m", "now").timezone("browser")
    made.tooltip(models.DashboardCursorSync.CROSSHAIR).link(_others())
    made.with_variable(grafana.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name in board.variables:
        made.with_variable(_variable(name))
    numbers = count(1)
    for row in board.rows:
        if row.title:
            made.with_row(grafana.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            made.with_panel(panel.id(next(numbers)).height(row.height).span(COLUMNS // len(row.panels)))
    return made.build()


def _others() -> grafana.DashboardLink:
    link = grafana.DashboardLink("damoserve").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.icon("dashboard").as_dropdown(False).include_vars(True).keep_time(True)


def _variable(name: str) -> grafana.QueryVariable:
    label, asked = VARIABLES[name]
    variable = grafana.QueryVariable(name).label(label).query({"query": asked, "refId": name}).datasource(SOURCE)
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return variable.multi(True).include_all(True).current(models.VariableOption(text=["All"], value=["$__all"]))


def _named(asked: Sequence[Query]) -> list[Builder[Dataquery]]:
    return [one.ref_id(chr(ord("A") + number)).datasource(SOURCE) for number, one in enumerate(asked)]
