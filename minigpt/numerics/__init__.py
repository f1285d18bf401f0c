"""How rows are computed: fast, or with bits that do not depend on the company of a row."""
