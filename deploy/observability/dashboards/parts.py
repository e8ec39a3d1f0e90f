"""The parts of which all dashboards are made: panels that look alike, variables, links."""

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
from grafana_foundation_sdk.models import prometheus as prometheus_models

Panel = timeseries.Panel | stat.Panel | heatmap.Panel | statetimeline.Panel | table.Panel | bargauge.Panel
Query = prometheus.Dataquery

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24
TAG = "damoserve"
GREEN, ORANGE, RED, GREY = "green", "orange", "red", "gray"


@dataclass(frozen=True)
class Row:
    """A row of panels, all equally wide and `height` grid units high; without a title it has no head."""

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

"""The title of each variable, and the query for its values."""


def query(expression: str, legend: str = "") -> Query:
    """Returns a query over the shown time."""
    return prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").range()


def query_now(expression: str, legend: str = "") -> Query:
    """Returns a query for the value at the end of the shown time."""
    return prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").instant()


def graph(title: str, description: str, unit: str, *queries: Query) -> timeseries.Panel:
    """Makes a panel of lines over time."""
    panel = timeseries.Panel().title(title).description(description).unit(unit).datasource(SOURCE)
    legend = common.VizLegendOptions().display_mode(looks.LegendDisplayMode.TABLE).calcs(["mean", "max", "lastNotNull"])
    tooltip = common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING)
    return (
        panel.targets(_lettered(queries))
        .legend(legend.placement(looks.LegendPlacement.BOTTOM).show_legend(True))
        .tooltip(tooltip)
        .line_width(1)
        .fill_opacity(8)
        .show_points(looks.VisibilityMode.NEVER)
        .min(0)
    )


def stacked(title: str, description: str, unit: str, *queries: Query) -> timeseries.Panel:
    """Makes a panel of areas that add up to the whole."""
    stacking = common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A")
    return graph(title, description, unit, *queries).fill_opacity(60).stacking(stacking)


def shares(title: str, description: str, *queries: Query) -> timeseries.Panel:
    """Makes a panel of areas as shares of one whole."""
    stacking = common.StackingConfig().mode(looks.StackingMode.PERCENT).group("A")
    return graph(title, description, "percentunit", *queries).fill_opacity(60).stacking(stacking).max(1)


def figure(title: str, description: str, unit: str, *queries: Query) -> stat.Panel:
    """Makes a panel of one number with its course behind it."""
    panel = stat.Panel().title(title).description(description).unit(unit).datasource(SOURCE).targets(_lettered(queries))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.graph_mode(looks.BigValueGraphMode.AREA).color_mode(looks.BigValueColorMode.VALUE)


def heat(title: str, description: str, unit: str, by_bucket: Query) -> heatmap.Panel:
    """Makes a panel of the buckets of a histogram over time; the query is by `le`."""
    mode, scale = heatmap_looks.HeatmapColorMode.SCHEME, heatmap_looks.HeatmapColorScale.EXPONENTIAL
    colour = heatmap.HeatmapColorOptions().mode(mode).scale(scale).scheme("Oranges").exponent(0.5).steps(64)
    panel = heatmap.Panel().title(title).description(description).datasource(SOURCE)
    by_bucket.format(prometheus_models.PromQueryFormat.HEATMAP).legend_format("{{le}}")
    return panel.targets(_lettered([by_bucket])).calculate(False).color(colour).y_axis(heatmap.YAxisConfig().unit(unit))


def bars(title: str, description: str, unit: str, *queries: Query) -> bargauge.Panel:
    """Makes a panel with a bar for each series, as it is now."""
    panel = bargauge.Panel().title(title).description(description).unit(unit).datasource(SOURCE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.targets(_lettered(queries)).orientation(looks.VizOrientation.HORIZONTAL).min(0)


def states(title: str, description: str, names: Sequence[tuple[str, str]], *queries: Query) -> statetimeline.Panel:
    """Makes a panel of states over time; `names` has the text and the colour of each of the values 0, 1 ..."""
    texts = {str(value): models.ValueMappingResult(text, colour) for value, (text, colour) in enumerate(names)}
    colours = [(float(value), colour) for value, (_, colour) in enumerate(names)]
    panel = statetimeline.Panel().title(title).description(description).datasource(SOURCE).targets(_lettered(queries))
    panel.mappings([models.ValueMap(texts)]).thresholds(levels(colours[0][1], *colours[1:]))
    panel.color_scheme(grafana.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    return panel.show_value(looks.VisibilityMode.AUTO).row_height(0.8)


def labels(title: str, description: str, labelled: Query) -> table.Panel:
    """Makes a table of the labels of series whose value says nothing."""
    labelled.format(prometheus_models.PromQueryFormat.TABLE)
    excluded = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
    arranged = models.DataTransformerConfig(id_val="organize", options={"excludeByName": excluded})
    panel = table.Panel().title(title).description(description).datasource(SOURCE)
    return panel.targets(_lettered([labelled])).with_transformation(arranged)


def levels(first: str, *steps: tuple[float, str]) -> grafana.ThresholdsConfig:
    """Returns colours by value: `first` below all steps, then that of the last step that is reached."""
    all_steps = [models.Threshold(value=None, color=first), *(models.Threshold(value, color) for value, color in steps)]
    return grafana.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(all_steps)


def lined(panel: timeseries.Panel, *steps: tuple[float, str]) -> timeseries.Panel:
    """Draws dashed lines in the panel at these values."""
    dashed = common.GraphThresholdsStyleConfig().mode(looks.GraphThresholdsStyleMode.DASHED)
    return panel.thresholds(levels("transparent", *steps)).thresholds_style(dashed)


def dashed(panel: timeseries.Panel, pattern: str) -> timeseries.Panel:
    """Draws the series whose legends match as dashed lines without an area, such as objectives beside what is."""
    style = {"fill": "dash", "dash": [8, 6]}
    alone = {"mode": "none"}  # not on top of what is stacked
    looks_like = {"custom.lineStyle": style, "custom.fillOpacity": 0, "custom.lineWidth": 2, "custom.stacking": alone}
    return panel.override_by_regexp(
        f"/{pattern}/", [models.DynamicConfigValue(name, value) for name, value in looks_like.items()]
    )


def build(board: Board) -> models.Dashboard:
    """Builds a dashboard for Grafana. Raises KeyError for an unknown variable."""
    dashboard = grafana.Dashboard(board.title).uid(f"{TAG}-{board.name}").description(board.description).tags([TAG])
    dashboard.readonly().refresh("10s").time("now-30m", "now").timezone("browser")
    dashboard.tooltip(models.DashboardCursorSync.CROSSHAIR).link(_others())
    dashboard.with_variable(grafana.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name in board.variables:
        dashboard.with_variable(_variable(name))
    numbers = count(1)
    for row in board.rows:
        if row.title:
            dashboard.with_row(grafana.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            dashboard.with_panel(panel.id(next(numbers)).height(row.height).span(COLUMNS // len(row.panels)))
    return dashboard.build()


def _others() -> grafana.DashboardLink:
    link = grafana.DashboardLink("damoserve").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.icon("dashboard").as_dropdown(False).include_vars(True).keep_time(True)


def _variable(name: str) -> grafana.QueryVariable:
    label, values = VARIABLES[name]
    variable = grafana.QueryVariable(name).label(label).query({"query": values, "refId": name}).datasource(SOURCE)
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return variable.multi(True).include_all(True).current(models.VariableOption(text=["All"], value=["$__all"]))


def _lettered(queries: Sequence[Query]) -> list[Builder[Dataquery]]:
    """Gives every query of a panel the letter that Grafana wants."""
    return [target.ref_id(chr(ord("A") + number)).datasource(SOURCE) for number, target in enumerate(queries)]
