from .format.dtypes import describe, parse, storage_dtype

__all__ = ["describe", "parse", "storage_dtype"]
