"""Does not import: it is listed as broken and hinders nobody."""

import a_module_that_is_not_there  # noqa: F401
