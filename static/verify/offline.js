// The page that is kept on disk: the same form and the same checks, with no node behind them.
import { buildForm } from "./form.js";
import * as checks from "./report.js";

buildForm(document.getElementById("verifier"), { load: async () => checks, limits: true });
