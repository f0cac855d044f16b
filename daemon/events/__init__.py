"""Events: written with the change they tell of, and published afterwards."""
