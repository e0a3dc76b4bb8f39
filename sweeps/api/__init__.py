"""What a script or notebook does with a sweep: open it, tabulate, plot, compare, export."""
