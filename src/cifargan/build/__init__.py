"""Configuration to objects. What is needed is imported from the module where it lives."""
