"""Figures of the training data of a stage, or of files for which another trainer was used: `data/…` of `diagnosis.measures`."""

from fledge.doctor.data_figures.files import data_figures_of_files
from fledge.doctor.data_figures.stage import data_figures, dataset_figures

__all__ = ["data_figures", "data_figures_of_files", "dataset_figures"]
