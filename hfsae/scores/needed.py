"""What scores need beside hfsae's own dependencies: scikit-learn and scipy, imported when they are used."""

from types import ModuleType


def needed(module: str) -> ModuleType:
    """A module of scikit-learn or scipy.

    Args:
        module: `"sklearn.linear_model"`, `"scipy.optimize"` or `"scipy.sparse"`.

    Raises:
        ImportError: If its package is not installed; says how to install it.
    """
    try:
        if module == "scipy.optimize":
            import scipy.optimize as found
        elif module == "scipy.sparse":
            import scipy.sparse as found
        else:
            import sklearn.linear_model as found
    except ImportError as error:
        raise ImportError(f"scores need {module.split('.')[0]}: pip install scikit-learn scipy") from error
    return found
