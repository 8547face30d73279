"""Make the clinic's tables: stands for your own migrations."""

import os

from app import Base
from sqlalchemy import create_engine

from pgaudit_ctx.urls import sqlalchemy_url

Base.metadata.create_all(create_engine(sqlalchemy_url(os.environ["PGAUDIT_CTX_SOURCE_URL"])))
