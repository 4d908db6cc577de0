"""Comparisons and reports of classifiers."""
