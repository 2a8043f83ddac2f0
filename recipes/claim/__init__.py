"""The claims: what is measured for each, and how it is reported."""
