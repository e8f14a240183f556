"""What is wrong with a training run, told from figures alone: the tables of causes and symptoms. No model is needed here."""

from fledge.diagnosis.case import Case, Depth, Figure
from fledge.diagnosis.cause import Cause, Diagnoses, Diagnosis, Sign, Symptom

__all__ = ["Case", "Cause", "Depth", "Diagnoses", "Diagnosis", "Figure", "Sign", "Symptom"]
