// The 3D view: unpacks the data of the page, draws them with Mol*, and joins the controls to it.
"use strict";

(() => {
  const text = (id) => document.getElementById(id).textContent;

  async function unpack(name) {
    const packed = Uint8Array.from(atob(text("data-" + name)), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function unpackText(name) {
    return new TextDecoder().decode(await unpack(name));
  }

  const colour = (hex) => parseInt(hex.slice(1), 16);

  async function start(canvasHolder) {
    const script = document.createElement("script");
    script.textContent = await unpackText("viewer");
    document.head.appendChild(script);
    const { PluginContext, DefaultPluginSpec } = molstar.lib.plugin;
    const plugin = new PluginContext(DefaultPluginSpec());
    await plugin.init();
    if (!(await plugin.mountAsync(canvasHolder))) throw new Error("this browser offers no WebGL");
    plugin.canvas3d.setProps({
      renderer: { backgroundColor: 0xffffff },
      camera: { helper: { axes: { name: "off", params: {} } } },
      cameraFog: { name: "on", params: { intensity: 40 } },
      cameraClipping: { far: false, radius: 60, minNear: 1 },
      multiSample: { mode: "off" },
      postprocessing: { occlusion: { name: "off", params: {} } },
    });
    return plugin;
  }

  // One model with its drawings; the references of these are what is shown and hidden.
  async function addModel(plugin, name, label, drawings) {
    const { Data, Model, Representation } = molstar.lib.plugin.StateTransforms;
    const build = plugin.build();
    const structure = build
      .toRoot()
      .apply(Data.RawData, { data: await unpackText(name), label })
      .apply(Data.ParseCif)
      .apply(Model.TrajectoryFromMmCif)
      .apply(Model.ModelFromTrajectory, { modelIndex: 0 })
      .apply(Model.StructureFromModel);
    const refs = drawings.map(({ kind, params, hex, size, of }) => {
      const from = of ? structure.apply(Model.StructureComponent, { type: { name: "static", params: of }, nullIfEmpty: true }) : structure;
      return from.apply(Representation.StructureRepresentation3D, {
        type: { name: kind, params: params || {} },
        colorTheme: { name: "uniform", params: { value: colour(hex) } },
        sizeTheme: { name: "uniform", params: { value: size || 1 } },
      }).ref;
    });
    await build.commit();
    return { structure: structure.ref, refs };
  }

  function isosurface(map, level) {
    return {
      type: {
        name: "isosurface",
        params: {
          isoValue: { kind: "absolute", absoluteValue: level / map.step },
          visuals: [map.wireframe ? "wireframe" : "solid"],
          alpha: map.wireframe ? 1 : 0.25,
          sizeFactor: 1,
          tryUseGpu: false,
        },
      },
      colorTheme: { name: "uniform", params: { value: colour(map.colour) } },
      sizeTheme: { name: "uniform", params: { value: 1 } },
    };
  }

  async function addMap(plugin, map) {
    const { Data, Volume, Representation } = molstar.lib.plugin.StateTransforms;
    const build = plugin.build();
    const drawing = build
      .toRoot()
      .apply(Data.RawData, { data: await unpack(map.data), label: "map" })
      .apply(Data.ParseCcp4)
      .apply(Volume.VolumeFromCcp4, { voxelSize: undefined })
      .apply(Representation.VolumeRepresentation3D, isosurface(map, map.level));
    await build.commit();
    return drawing.ref;
  }

  function show(plugin, ref, shown) {
    plugin.state.data.updateCellState(ref, { isHidden: !shown });
  }

  function join(plugin, scene, models, mapRef) {
    scene.states.forEach((state, i) => {
      const box = document.getElementById("show-" + state.data);
      const apply = () => models[i].refs.forEach((ref) => show(plugin, ref, box.checked));
      box.addEventListener("change", apply);
      apply();
    });
    const around = document.getElementById("show-around");
    if (around) around.addEventListener("change", () => models.around.refs.forEach((ref) => show(plugin, ref, around.checked)));
    const map = document.getElementById("show-map");
    if (!map || !mapRef) return;
    map.addEventListener("change", () => show(plugin, mapRef, map.checked));
    const level = document.getElementById("level");
    let waiting = false;
    level.addEventListener("input", () => {
      document.getElementById("level-value").textContent = Number(level.value).toPrecision(3);
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(async () => {
        const build = plugin.build();
        build.to(mapRef).update(isosurface(scene.map, Number(level.value)));
        await build.commit();
        waiting = false;
        if (document.getElementById("level").value !== level.value) level.dispatchEvent(new Event("input"));
      });
    });
  }

  // So near that the states fill the picture, with a little room around them.
  function look(plugin, { target, up, towards, reach }) {
    const { width, height } = plugin.canvas3d.camera.viewport;
    const half = Math.max(reach[1], (reach[0] * height) / width) + 1.5;
    const distance = half / Math.tan(plugin.canvas3d.camera.state.fov / 2) + reach[2];
    const position = target.map((x, i) => x + towards[i] * distance);
    const radius = Math.hypot(...reach);
    plugin.canvas3d.requestCameraReset({ snapshot: { target, up, position, radius, radiusMax: radius }, durationMs: 0 });
  }

  // The wheel scrolls the page until the view is clicked, and again when the pointer has left it.
  function leaveTheWheel(holder) {
    let taken = false;
    holder.addEventListener("pointerdown", () => (taken = true));
    holder.addEventListener("pointerleave", () => (taken = false));
    holder.addEventListener("wheel", (event) => taken || event.stopPropagation(), { capture: true });
  }

  async function main(holder) {
    const scene = JSON.parse(text("scene"));
    leaveTheWheel(holder);
    const plugin = await start(holder);
    const models = [];
    for (const state of scene.states) {
      const hex = state.colour;
      const drawing = state.sticks
        ? { kind: "ball-and-stick", hex, params: { sizeFactor: 0.19 } }
        : { kind: "cartoon", hex, params: { sizeFactor: 0.2 } };
      models.push(await addModel(plugin, state.data, state.name, [drawing]));
    }
    if (scene.around) {
      models.around = await addModel(plugin, scene.around.data, "rest of the model", [
        { kind: "cartoon", of: "polymer", hex: scene.around.colour, params: { sizeFactor: 0.15 } },
        { kind: "ball-and-stick", of: "ligand", hex: scene.around.colour, params: { sizeFactor: 0.15 } },
        { kind: "ball-and-stick", of: "water", hex: scene.around.waters, params: { sizeFactor: 0.25 } },
      ]);
    }
    const mapRef = scene.map ? await addMap(plugin, scene.map) : null;
    join(plugin, scene, models, mapRef);
    look(plugin, scene.camera);
    document.getElementById("reset-view").addEventListener("click", () => look(plugin, scene.camera));
    new ResizeObserver(() => plugin.handleResize()).observe(holder);
    return plugin;
  }

  const holder = document.getElementById("view");
  if (!holder) return;
  const figure = document.getElementById("view-figure");
  main(holder)
    .then(() => {
      figure.dataset.state = "drawn";
    })
    .catch((error) => {
      figure.dataset.state = "failed";
      document.getElementById("view-problem").textContent =
        "The 3D view cannot be drawn here (" + error.message + "). The figure shows the same states.";
    });
})();
