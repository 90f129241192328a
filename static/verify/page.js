// The page /verify: the form, with checks that are fetched when they are needed.
import { buildForm } from "./form.js";

const root = document.getElementById("verifier");
buildForm(root, { load: () => import("./report.js"), genesisAddress: root.dataset.genesis });
