"""Studies: comparisons of normalizers and posteriors on data, and their reports."""

from pyronorm.study.architectures import NETWORKS, make_network
from pyronorm.study.catalog import STUDIES, Entry, make_study, restore_study
from pyronorm.study.columns import COLUMNS, columns
from pyronorm.study.compare import Compare, CompareSettings
from pyronorm.study.comparison import Comparison
from pyronorm.study.folder import Folder
from pyronorm.study.methods import DEFAULT_METHODS, METHODS, Method, choose_methods
from pyronorm.study.noise_choices import NoiseChoices, NoiseChoicesSettings
from pyronorm.study.noise_questions import QUESTIONS
from pyronorm.study.report import Rendered, format_table, write_report
from pyronorm.study.runner import run_study
from pyronorm.study.settings import Settings, Training
from pyronorm.study.study import Job, Outcome, Place, Plot, Results, Section, Study
from pyronorm.study.table import Better, Cell, Column, Row, Table, frame, summarize
from pyronorm.study.training import Trained, center, judge, train
from pyronorm.study.training_noise import TrainingNoise, TrainingNoiseSettings
from pyronorm.study.uncertainty_uci import UncertaintyUci

__all__ = [
    "COLUMNS",
    "DEFAULT_METHODS",
    "METHODS",
    "NETWORKS",
    "QUESTIONS",
    "STUDIES",
    "Better",
    "Cell",
    "Column",
    "Compare",
    "CompareSettings",
    "Comparison",
    "Entry",
    "Folder",
    "Job",
    "Method",
    "NoiseChoices",
    "NoiseChoicesSettings",
    "Outcome",
    "Place",
    "Plot",
    "Rendered",
    "Results",
    "Row",
    "Section",
    "Settings",
    "Study",
    "Table",
    "Trained",
    "Training",
    "TrainingNoise",
    "TrainingNoiseSettings",
    "UncertaintyUci",
    "center",
    "choose_methods",
    "columns",
    "format_table",
    "frame",
    "judge",
    "make_network",
    "make_study",
    "restore_study",
    "run_study",
    "summarize",
    "train",
    "write_report",
]
