"""Search for structures: the best by entropy score that a budget allows.

ValueError
├── SearchError   the start is over budget, or what was saved is damaged or of another search
└── TableError    the latency table is damaged, of another machine, or not complete
"""

from damoserve_compress.search.costs import Budget, CostModel, Costs
from damoserve_compress.search.evolve import ScoredStructure, Search, SearchConfig, SearchError, check_start
from damoserve_compress.search.mutate import Space
from damoserve_compress.search.predict import LatencyModel
from damoserve_compress.search.score import WEIGHTS, entropy_score
from damoserve_compress.search.table import LatencyTable, TableError

__all__ = [
    "WEIGHTS",
    "Budget",
    "CostModel",
    "Costs",
    "LatencyModel",
    "LatencyTable",
    "ScoredStructure",
    "Search",
    "SearchConfig",
    "SearchError",
    "Space",
    "TableError",
    "check_start",
    "entropy_score",
]
