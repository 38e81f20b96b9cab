-- Run once by the composed Postgres: the registry keeps its schemas in a database of its own.
CREATE DATABASE registry OWNER sluice;
